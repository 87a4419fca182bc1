"""`mmalign export`: what a run trained, in the formats of its ecosystem."""

from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain

__all__ = ["main"]

_FORMATS = {
    "image": ("diffusers", "comfyui", "merged"),
    "language": ("peft", "merged"),
    "audio": ("official", "merged", "peft"),
    "video": ("diffusers", "comfyui", "merged", "official"),
}


def main(run: Path, to: str, output: Path | None = None) -> int:
    """Export a run. Returns the exit code.

    Args:
        run: run folder or checkpoint.
        to: format.
        output: where to write; default RUN/export/FORMAT.

    Raises:
        ConfigError: the format is that of other models.
    """
    from mmalign.train.run_folders import run_modality

    modality = run_modality(Path(run))
    known = _FORMATS.get(modality, ())
    if to not in known:
        message = explain("mmalign export --to", got=to, expected=f"of {modality} models: {', '.join(known)}")
        raise ConfigError(message)
    if modality == "language":
        from mmalign.vlm import export as language

        return language.main(run, "merged" if to == "merged" else "peft", output)
    name: Any = to
    if modality == "audio":
        from mmalign.audio import export as sounds

        return sounds.main(run, name, output)
    if modality == "video":
        from mmalign.video import export as clips

        return clips.main(run, name, output)
    from mmalign.diffusion import export as images

    return images.main(run=run, to=name, output=output)
