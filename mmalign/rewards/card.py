"""What a reward is, before anything is loaded: scale, weights, limits, licence, sources, reference values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Card", "Modality", "Reference", "Weights"]

Modality = Literal["image", "video", "audio", "text"]


@dataclass(frozen=True)
class Weights:
    """Published files of one model; a local folder of the same layout may stand in for them.

    Args:
        repository: id on the host.
        files: patterns of the files that are needed.
        revision: commit that is fetched. None = the main branch, which the card then says is unpinned.
        role: which part of the reward it is ("model", "tokenizer", "head", "base").
        bytes: size of the download, 0 = unknown.
        sha256: file name to hash, where the publisher or we know it.
        host: "hub" is the Hugging Face hub; a few small heads were published in a "github" repository alone,
            networks that hear as files of a "web" page.
        address: of a "web" page, what stands before "/" and a file's name.
    """

    repository: str
    files: tuple[str, ...]
    revision: str | None = None
    role: str = "model"
    bytes: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)
    host: Literal["hub", "github", "web"] = "hub"
    address: str = ""


@dataclass(frozen=True)
class Reference:
    """A published value of one sample, for `mmalign doctor --verify`.

    Args:
        prompt: text of the sample.
        media: file name of the picture or clip in the official repository; the user keeps it in a folder.
        value: what the official code prints.
        tolerance: absolute difference that counts as the same.
        source: where the value stands.
        output: which output it is.
    """

    prompt: str
    media: str
    value: float
    tolerance: float
    source: str
    output: str = "score"


@dataclass(frozen=True)
class Card:
    """One reward.

    Args:
        name: as users type it; it includes the version, so that two scales never share a name.
        title: what it is, in one line.
        modality: of the samples.
        outputs: names of the values of a sample, in order; the first is the one used where one is asked for.
        scale: unit and usual range in words.
        higher_is_better: False for distances.
        weights: what must be there to load it.
        paper: arXiv id, or "".
        official_code: repository the numbers are held against.
        licence: of the weights, as their card says; "unknown" where it does not.
        differentiable: `score_tensor` keeps the graph.
        text_limit: tokens of the prompt that are read; None = as many as the model takes. Longer ones are cut
            and counted.
        pixels: size the media are brought to, in words.
        needs: fields of `Sample.extras` it reads.
        options: option name to what it does, for `load(name, option=...)`.
        references: published values.
        departures: what the official code does otherwise, one sentence each.
        extra: optional dependency (pyproject extra) it needs, or "".
    """

    name: str
    title: str
    modality: Modality
    outputs: tuple[str, ...] = ("score",)
    scale: str = ""
    higher_is_better: bool = True
    weights: tuple[Weights, ...] = ()
    paper: str = ""
    official_code: str = ""
    licence: str = "unknown"
    differentiable: bool = False
    text_limit: int | None = None
    pixels: str = ""
    needs: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    departures: tuple[str, ...] = ()
    extra: str = ""
