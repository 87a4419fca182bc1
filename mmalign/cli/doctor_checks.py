"""What `mmalign doctor` finds out: libraries, devices, rewards, published scores. Nothing is downloaded."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from mmalign import rewards
from mmalign.cli.reward_cards import presence
from mmalign.errors import MmalignError
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card, Reference
from mmalign.rewards.sample import Sample
from mmalign.rewards.weights import hashes

__all__ = [
    "Device",
    "Library",
    "ReferenceCheck",
    "RewardState",
    "devices",
    "libraries",
    "offline",
    "reward_state",
    "verify",
]

LibraryStatus = Literal["ok", "missing", "too old", "too new"]


@dataclass(frozen=True)
class Library:
    """One dependency.

    Args:
        name: on the package registry.
        installed: its version, "" where it is not.
        wanted: versions mmalign is written for.
        status: how the two compare; "too new" may work and was not tested.
        extra: the optional dependency it belongs to, "" for what a plain install brings.
        command: what mends it, "" where nothing has to be.
    """

    name: str
    installed: str
    wanted: str
    status: LibraryStatus
    extra: str
    command: str


def libraries(requirements: Sequence[str] | None = None) -> list[Library]:
    """Every dependency of mmalign with the installed version, required ones first.

    Args:
        requirements: as package metadata writes them; None takes those of the installed mmalign, without
            what only its developers need.
    """
    if requirements is None:
        requirements = importlib.metadata.requires("mmalign") or []
    found: dict[str, Library] = {}
    for text in requirements:
        wanted = Requirement(text)
        extra = _extra_of(wanted)
        if extra in _DEVELOPERS or wanted.name == "mmalign":
            continue
        if wanted.name in found and extra != wanted.name:  # an extra of its own is the one to name
            continue
        found[wanted.name] = _library(wanted, extra)
    return sorted(found.values(), key=lambda one: (one.extra, one.name.lower()))


_DEVELOPERS = ("test", "dev")


def _extra_of(wanted: Requirement) -> str:
    """The extra a requirement belongs to: the name its marker compares with."""
    marker = str(wanted.marker or "")
    return marker.partition('extra == "')[2].partition('"')[0]


def _library(wanted: Requirement, extra: str) -> Library:
    try:
        installed = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    versions = str(wanted.specifier)
    status: LibraryStatus = "ok"
    if not installed:
        status = "missing"
    elif not wanted.specifier.contains(installed, prereleases=True):
        lower = [Version(one.version) for one in wanted.specifier if one.operator in (">=", ">", "==", "~=")]
        status = "too old" if lower and Version(installed) < max(lower) else "too new"
    command = "" if status == "ok" else f"pip install '{wanted.name}{versions}'"
    if status == "missing" and extra:
        command = f"pip install 'mmalign[{extra}]'"
    return Library(wanted.name, installed, versions, status, extra, command)


@dataclass(frozen=True)
class Device:
    """Something to compute on.

    Args:
        name: as --device takes it.
        what: its model.
        memory: bytes, 0 = unknown.
        bfloat16: whether it computes in it natively.
    """

    name: str
    what: str
    memory: int
    bfloat16: bool


def devices() -> list[Device]:
    """The accelerators torch sees, and the processor."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        native = (about.major, about.minor) >= (8, 0) or torch.version.hip is not None
        found.append(Device(f"cuda:{number}", about.name, int(about.total_memory), native))
    if torch.backends.mps.is_available():
        found.append(Device("mps", platform.processor() or "Apple", 0, True))
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    what = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}"
    return [*found, Device("cpu", what, memory, False)]


@dataclass(frozen=True)
class RewardState:
    """Whether a reward can be loaded here.

    Args:
        name: of the reward.
        status: "ready"; "missing" (weights or an extra are not here); "own" (it has no published weights: the
            user brings the model); "broken" (its module cannot be imported, see `problem`).
        size: bytes of what is missing, 0 = nothing or unknown.
        places: repository to local folder.
        commands: what fetches the missing ones, in order.
        hashes: repository/file to SHA-256, where they were asked for.
        differing: files whose hash is not the published one.
        problem: why it is broken.
    """

    name: str
    status: Literal["ready", "missing", "own", "broken"]
    size: int
    places: Mapping[str, str]
    commands: tuple[str, ...]
    hashes: Mapping[str, str]
    differing: tuple[str, ...]
    problem: str = ""


def reward_state(card: Card, *, folder: Path | None, with_hashes: bool = False) -> RewardState:
    """What is here of a reward, what is not, and the commands that fetch it.

    Args:
        card: of the reward.
        folder: where weights are looked for first.
        with_hashes: read every file and compare it with the hash on the card (a minute for 10 GB).
    """
    found = presence(card, folder=folder)
    commands = [lacking.command for lacking in found.lacking]
    if card.extra and any(one.status == "missing" for one in libraries() if one.extra == card.extra):
        commands.append(f"pip install 'mmalign[{card.extra}]'")
    contents: dict[str, str] = {}
    differing = []
    for weights in card.weights if with_hashes else ():
        place = found.places.get(weights.repository)
        if place is None:
            continue
        for name, digest in hashes(place, weights.files).items():
            contents[f"{weights.repository}/{name}"] = digest
            if weights.sha256.get(name, digest) != digest:
                differing.append(f"{weights.repository}/{name}")
    ready: Literal["ready", "own"] = "ready" if card.weights else "own"
    return RewardState(
        name=card.name,
        status="missing" if commands else ready,
        size=sum(lacking.weights.bytes for lacking in found.lacking),
        places={name: str(place) for name, place in found.places.items()},
        commands=tuple(commands),
        hashes=contents,
        differing=tuple(differing),
    )


@dataclass(frozen=True)
class ReferenceCheck:
    """One published score beside ours.

    Args:
        reward: its name.
        media: file of the sample.
        output: which output.
        published: the value that stands in the source.
        found: ours; None where the file is not in the folder of references, or nothing came out.
        tolerance: difference that counts as equal.
        verdict: "equal", "differs", "failed" (see `note`), "no file" or "nothing published".
        note: where the file was looked for, or what went wrong.
    """

    reward: str
    media: str
    output: str
    published: float | None
    found: float | None
    tolerance: float
    verdict: Literal["equal", "differs", "failed", "no file", "nothing published"]
    note: str = ""


def verify(
    card: Card, *, folder: Path | None, references: Path | None, device: str, must_load: bool = False
) -> list[ReferenceCheck]:
    """Our values of the published samples, whose media the user keeps in a folder.

    Loads the reward only where there is a sample to score.

    Args:
        card: of a reward whose weights are here.
        folder: of the weights.
        references: folder of the media: by their path in the official repository, with or without a
            sub-folder of the reward's name.
        device: where the network runs.
        must_load: load it also without a sample, to see whether the weights fit.
    """
    files = {one: _media_file(one, card, references) for one in card.references}
    checks = [_unchecked(card, one, references) for one, file in files.items() if file is None]
    if not card.references:
        checks.append(ReferenceCheck(card.name, "", "", None, None, 0.0, "nothing published"))
    present = {one: file for one, file in files.items() if file is not None}
    if not present and not must_load:
        return checks
    try:
        with offline():
            reward = rewards.load(card.name, weights=_own_folder(card, folder), device=device)
            return [*_compared(card, reward, present), *checks]
    except (MmalignError, ImportError, OSError, RuntimeError, ValueError) as error:
        note = f"{type(error).__name__}: {error}"
        failed = ReferenceCheck(card.name, "", "", None, None, 0.0, "failed", note)
        return [failed, *checks]


def _compared(card: Card, reward: Reward, files: Mapping[Reference, Path]) -> list[ReferenceCheck]:
    kinds = {"image": "image", "video": "video", "audio": "audio"}
    samples = [
        Sample(prompt=one.prompt, **{kinds.get(card.modality, "image"): file})  # type: ignore[arg-type]
        for one, file in files.items()
    ]
    scored = reward.score(samples, batch_size=1)
    columns = [card.outputs.index(one.output) for one in files]
    return [
        _check(card, one, float(scored.values[place, column]), scored.errors[place])
        for place, (one, column) in enumerate(zip(files, columns, strict=True))
    ]


def _check(card: Card, one: Reference, value: float, error: str | None) -> ReferenceCheck:
    head = (card.name, one.media, one.output, one.value)
    if error is not None:
        return ReferenceCheck(*head, None, one.tolerance, "failed", error)
    equal = abs(value - one.value) <= one.tolerance
    return ReferenceCheck(*head, value, one.tolerance, "equal" if equal else "differs")


def _unchecked(card: Card, one: Reference, references: Path | None) -> ReferenceCheck:
    where = f"put {one.media} of {card.official_code or 'the official repository'} into "
    note = where + ("the folder --references names" if references is None else str(references / card.name))
    return ReferenceCheck(card.name, one.media, one.output, one.value, None, one.tolerance, "no file", note)


def _media_file(one: Reference, card: Card, references: Path | None) -> Path | None:
    if references is None:
        return None
    own = references / card.name
    candidates = (own / one.media, references / one.media, own / Path(one.media).name)
    return next((path for path in candidates if path.is_file()), None)


def _own_folder(card: Card, folder: Path | None) -> Path | None:
    """The folder, where everything the card asks for is in it; else the cache has it."""
    if folder is None:
        return None
    places = presence(card, folder=folder).places.values()
    return folder if all(place.is_relative_to(folder) for place in places) else None


@contextmanager
def offline() -> Iterator[None]:
    """A block in which the hub's library fetches nothing."""
    from huggingface_hub import constants

    before, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable
