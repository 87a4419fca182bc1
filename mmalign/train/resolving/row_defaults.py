"""What a method's row recommends for a family, and the rule by which a section takes it."""

from collections.abc import Mapping

from mmalign.methods.row import Default, Method
from mmalign.train.sections import Section

__all__ = ["ALTERNATIVES", "Settings", "defaults_of", "fill"]

Settings = Mapping[str, tuple[str, object]]
"""Setting of a section to (its key among a row's defaults, its value where the row has none)."""

ALTERNATIVES = {"steps": "epochs", "epochs": "steps"} | {
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_steps",
}
"""Settings of which one is enough."""


def defaults_of(method: Method, family: str, modality: str) -> dict[str, Default]:
    """What is recommended: each layer over those before it; of steps and epochs only the upper one's.

    Numbers of training that hold for any language model lie under everything that a row says; those of sound
    and of video over what a row says of all media, which are numbers of pictures.
    """
    from mmalign.methods import audio, video, vlm

    def of(name: str) -> Mapping[str, Default]:
        return method.defaults.get(name, {})

    layers = {
        "language": (vlm.PRESET, {**of("*"), **of("language"), **of(family)}),
        "audio": (of("*"), audio.PRESET, {**of("audio"), **of(family)}),
        "video": (of("*"), video.PRESET, {**of("video"), **of(family)}),
    }
    found: dict[str, Default] = {}
    for layer in layers.get(modality, (method.defaults_for(family, modality),)):
        left = {name: value for name, value in found.items() if ALTERNATIVES.get(name) not in layer}
        found = {**left, **layer}
    return found


def fill(
    section: Section,
    table: Settings,
    where: str,
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
) -> dict[str, object]:
    """The section's settings, those left open taken from the row, else from the table."""
    values = section.model_dump()
    for name, (key, fallback) in table.items():
        if values[name] is not None:
            continue
        values[name] = defaults[key].value if key in defaults else fallback
        if key in defaults:
            filled[f"{where}.{name}"] = defaults[key]
    return values
