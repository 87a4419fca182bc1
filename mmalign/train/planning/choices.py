"""Live or stored, encoded at every visit or once: what each costs in time and disk, and which pays."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmalign.errors import ConfigError
from mmalign.train.config import ResolvedRun
from mmalign.train.parts import reference_kind
from mmalign.train.plan import layout_of
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import num_candidates
from mmalign.train.planning.devices import Device
from mmalign.train.planning.launches import SINGLE, Launch
from mmalign.train.planning.timing import encoding_seconds, reference_seconds
from mmalign.train.rollouts import is_online

__all__ = ["Choice", "choices_of", "refusal"]


@dataclass(frozen=True)
class Choice:
    """One thing that can be done in two ways.

    Args:
        about: what it is.
        now: what the run does.
        pays: what is faster over the whole run, or needs less memory for the same time.
        override: the setting of the way that pays; "" where the run has it.
        seconds_now: of the whole run, on every device; None where steps or rows are not known.
        seconds_other: the same, of the other way.
        disk: bytes that the stored way writes.
        why: in words.
    """

    about: str
    now: str
    pays: str
    override: str
    seconds_now: float | None
    seconds_other: float | None
    disk: int | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        """As written in JSON."""
        return asdict(self)


Variant = Callable[[Sequence[str]], ResolvedRun]


def choices_of(
    run: ResolvedRun,
    counted: Counted,
    device: Device,
    *,
    num_rows: int | None,
    variant: Variant | None,
    launch: Launch = SINGLE,
) -> tuple[Choice, ...]:
    """What the run could do otherwise about its reference and its encoders.

    Args:
        run: resolved.
        counted: on shapes.
        device: the planned one.
        num_rows: of the data; None where they cannot be opened here.
        variant: makes the run with other settings; None: what is allowed is not looked at.
        launch: whose processes share live scoring, live encoding and the storing of a reference.
    """
    found = [
        _reference(run, counted, device, num_rows=num_rows, variant=variant, launch=launch),
        _encoders(run, counted, device, num_rows=num_rows, launch=launch),
    ]
    return tuple(choice for choice in found if choice is not None)


def refusal(variant: Variant | None, changes: Sequence[str]) -> str:
    """Why settings do not go together, in one line; "" where they do."""
    if variant is None:
        return ""
    try:
        variant(changes)
    except ConfigError as error:
        return next(iter(str(error).splitlines()), "refused")
    return ""


def _visits(run: ResolvedRun, launch: Launch) -> int | None:
    """Rows that the run looks at on all devices, repeated ones among them."""
    steps = run.config.train.steps
    return None if steps is None else steps * layout_of(run, launch).effective_batch


def _reference(
    run: ResolvedRun,
    counted: Counted,
    device: Device,
    *,
    num_rows: int | None,
    variant: Variant | None,
    launch: Launch,
) -> Choice | None:
    kind, settings = reference_kind(run), run.config.reference
    if kind not in ("adapters_off", "frozen", "stored") or is_online(run):
        return None
    refused = refusal(variant, ["reference.kind=stored"]) if kind != "stored" else ""
    if refused:
        return Choice("reference", kind, kind, "", None, None, None, f"stored is not for this run: {refused}")
    draws = 1 if counted.encoding is None else settings.draws_per_row
    each, visits = reference_seconds(run, counted, device), _visits(run, launch)
    live = None if visits is None else visits * each / launch.processes
    stored = None if num_rows is None else num_rows * draws * each / launch.processes
    entries = draws * run.config.likelihood.draws
    disk = None if num_rows is None else num_rows * entries * (8 + 4 * num_candidates(run))
    now, other = (stored, live) if kind == "stored" else (live, stored)
    if live is None or stored is None:
        why = (
            f"a reference costs {each:.3g} s per pair and visit; stored, {draws} draws of every row are "
            "computed once: it pays where rows are visited more often than that"
        )
        return Choice("reference", kind, kind, "", now, other, disk, why)
    saves = stored < live
    copy = " and the second copy of the weights" if kind == "frozen" else ""
    bank = f"{num_rows} rows x {draws} draws"
    why = f"live {_hours(live)} over {visits} visits, stored {_hours(stored)} for {bank}"
    if copy:
        why += f"; stored saves{copy.removeprefix(' and')} in any case"
    pays = "stored" if saves else ("adapters_off" if run.config.adapter.kind == "lora" else "frozen")
    override = "" if pays == kind else f"reference.kind={pays if pays == 'stored' else 'auto'}"
    return Choice("reference", kind, pays, override, now, other, disk, why)


def _encoders(
    run: ResolvedRun, counted: Counted, device: Device, *, num_rows: int | None, launch: Launch
) -> Choice | None:
    encoding, media = counted.encoding, run.config.media
    if encoding is None or is_online(run):
        return None
    each, visits = encoding_seconds(run, counted, device), _visits(run, launch)
    size = 2 * (num_candidates(run) * encoding.numbers + encoding.text_numbers)
    live = None if visits is None else visits * each / launch.processes
    cached = None if num_rows is None else num_rows * each
    disk = None if num_rows is None else num_rows * size
    is_cached = media.cache is not None
    kind = "cached" if is_cached else "live"
    now, other = (cached, live) if is_cached else (live, cached)
    name = f"{run.config.media_name}.cache"
    if live is None or cached is None:
        why = (
            f"encoding costs {each:.3g} s per pair and visit, a cache {size / 2**20:.2f} MiB per pair: it "
            "pays from the second visit on, and for the next run at once; the encoders' memory is free then"
        )
        return Choice(
            "encoders", kind, "cached", "" if is_cached else f"{name}=FOLDER", now, other, disk, why
        )
    saves = cached < live
    why = f"live {_hours(live)} over {visits} visits, cached {_hours(cached)} for {num_rows} rows, once"
    if not saves:
        why += "; a cache pays when another run uses it, too, or when memory is short"
    pays = "cached" if saves or is_cached else "live"
    override = "" if pays == kind else f"{name}=FOLDER"
    return Choice("encoders", kind, pays, override, now, other, disk, why)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.3g} s"
