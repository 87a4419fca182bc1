"""Real recordings of folders, and speech of synthesisers that are installed; nothing is downloaded.

Linux distributions package many: the words that test loudspeakers, desktop and ringing sounds, the samples of
synthesisers and drum machines. What a recording is called is all that is known of it.
"""

import re
import shutil
import subprocess
import tempfile
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_media import DecodedAudio, read_audio
from mmalign.data.config import AudioLimits
from mmalign.errors import RowError

__all__ = ["Recording", "Source", "described", "excerpt", "licences", "recordings", "speech"]

ENDINGS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"})

LIMITS = AudioLimits(min_seconds=0.25, silence="refuse")

SPEECH = "synthesised speech"

SENTENCES = (
    "A dog barks twice, then a door falls shut.",
    "Rain drums on a tin roof while thunder rolls far away.",
    "Please turn the volume down before you go.",
    "The next train leaves from platform seven.",
    "She sells fresh bread, honey and six kinds of tea.",
    "Nobody heard the clock strike midnight.",
)

# Program, then arguments with {text} and {file}.
SYNTHESISERS: dict[str, tuple[str, ...]] = {
    "espeak-ng, en-us": ("espeak-ng", "-v", "en-us", "-w", "{file}", "{text}"),
    "espeak-ng, en-gb": ("espeak-ng", "-v", "en-gb", "-s", "130", "-w", "{file}", "{text}"),
    "flite, slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{file}"),
    "flite, awb": ("flite", "-voice", "awb", "-t", "{text}", "-o", "{file}"),
    "flite, kal16": ("flite", "-voice", "kal16", "-t", "{text}", "-o", "{file}"),
}


@dataclass(frozen=True)
class Source:
    """Recordings of one kind, as the command line names them: `KIND=FOLDER` or `KIND=FOLDER/PATTERN`."""

    kind: str
    folder: Path
    pattern: str = "*"
    endings: frozenset[str] = ENDINGS

    @classmethod
    def parse(cls, text: str, endings: frozenset[str] = ENDINGS) -> "Source":
        kind, _, place = text.partition("=")
        path = Path(place)
        folder, pattern = (
            (path.parent, path.name) if any(sign in path.name for sign in "*?[") else (path, "*")
        )
        if not place or not kind.strip() or not folder.is_dir():
            message = f"got {text!r}, expected KIND=FOLDER or 'KIND=FOLDER/PATTERN' with a folder that exists"
            raise ArgumentTypeError(message)
        return cls(kind.strip(), folder, pattern, endings)

    def files(self) -> list[Path]:
        """Its files in the folder and below it, in order of their names; what is linked to counts once."""
        fitting = (path for path in self.folder.rglob(self.pattern) if path.suffix.lower() in self.endings)
        found: dict[Path, Path] = {}
        for path in sorted(fitting, key=lambda path: (path.is_symlink(), path)):
            if path.is_file():
                found.setdefault(path.resolve(), path)
        return sorted(found.values())


@dataclass(frozen=True)
class Recording:
    """A sound and what is said of it."""

    kind: str
    name: str
    prompt: str
    clip: DecodedAudio


def described(stem: str) -> str:
    """The words of a file's name: `Drum_tomHi-soft2` is `drum tom hi soft`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = re.sub(r"[^\w']+|_+", " ", parted).lower().split()
    kept = [re.sub(r"(?<=[a-z])\d+$", "", word) for word in words]
    return " ".join(word for word in kept if word and not word.isdigit())


def licences(folder: Path) -> str:
    """Names of licences in the texts that belong to a folder, or where no text says one."""
    named_so = re.compile(r"(?i)(copyright|licen[cs]e|copying).*")
    texts = [path for path in folder.rglob("*") if named_so.fullmatch(path.name)]
    if not texts:
        texts = _package_texts(folder)
    named: Counter[str] = Counter()
    for path in texts:
        if path.is_file():
            named.update(re.findall(r"(?m)^License:[ \t]*(\S.*)$", path.read_text(errors="replace")))
    if named:
        return ", ".join(name for name, _ in named.most_common())
    return f"see {', '.join(path.name for path in texts)}" if texts else "no text of a licence found"


def _package_texts(folder: Path) -> list[Path]:
    """The copyright files of the Debian package that a folder belongs to, installed or unpacked."""
    if shutil.which("dpkg-query"):
        asked = subprocess.run(["dpkg-query", "-S", str(folder)], capture_output=True, text=True, check=False)
        owners = asked.stdout.partition(": ")[0].split(", ") if asked.returncode == 0 else []
        if len(owners) == 1:
            return [Path("/usr/share/doc") / owners[0].partition(":")[0] / "copyright"]
    for parent in folder.resolve().parents:
        found = sorted((parent / "share" / "doc").glob("*/copyright"))
        if len(found) == 1:
            return found
    return []


def recordings(sources: Sequence[Source], refused: Counter[str]) -> Iterator[Recording]:
    """Recordings of folders; those the data layer refuses are counted by its reason."""
    for source in sources:
        for path in source.files():
            try:
                clip = read_audio(str(path), where=path.name, limits=LIMITS)
            except RowError as error:
                refused[error.reason] += 1
                continue
            words = described(path.stem)
            yield Recording(source.kind, path.stem, f"{words}, {source.kind}", clip)


def speech(sentences: Iterable[str] = SENTENCES) -> Iterator[Recording]:
    """Sentences as the installed synthesisers speak them; none where none is installed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        for voice, command in SYNTHESISERS.items():
            if shutil.which(command[0]) is None:
                continue
            for number, text in enumerate(sentences):
                arguments = [part.format(file=file, text=text) for part in command]
                subprocess.run(arguments, check=True, capture_output=True, timeout=60)
                clip = read_audio(file.read_bytes(), where=f"{voice}: {text}", limits=LIMITS)
                yield Recording(SPEECH, f"{voice} {number}", f'a voice says "{text}"', clip)


def excerpt(clip: DecodedAudio, seconds: float) -> Float[Tensor, "channel sample"]:
    """The beginning of a clip."""
    return clip.samples[:, : round(seconds * clip.sampling_rate)]
