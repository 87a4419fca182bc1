"""`mmalign sample`: pictures, sounds, clips or answers of a model; base beside tuned."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain

__all__ = ["main"]

_OF_SAMPLERS = {"steps": "--steps", "guidance_scale": "--guidance-scale", "num_images": "--num-images"}
_OF_VIDEO = {
    "num_frames": "--num-frames",
    "height": "--height",
    "width": "--width",
    "fps": "--fps",
    "guide": "--guide",
    "guide_weight": "--guide-weight",
}
_OF_LANGUAGE = {
    "family": "--family",
    "images": "--image",
    "videos": "--video",
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
}


def main(*, model: str | None = None, run: Path | None = None, **options: Any) -> int:
    """Sample from whatever was trained or named. Returns the exit code.

    Args:
        model: hub id, folder or file.
        run: run folder or checkpoint.
        options: of the command; None or empty where not given.

    Raises:
        ConfigError: an option of the other kind of model.
    """
    kind = _modality(model, run, options)
    language = kind == "language"
    own, other = (_OF_LANGUAGE, _OF_SAMPLERS) if language else (_OF_SAMPLERS, _OF_LANGUAGE)
    if kind == "video":  # some go on from a picture
        own = {**own, "images": "--image", **_OF_VIDEO}
        other = {name: flag for name, flag in other.items() if name != "images"}
    else:
        other = {**other, **_OF_VIDEO}
    wrong = [flag for name, flag in other.items() if options.get(name) not in (None, [])]
    if wrong:
        message = explain(
            "mmalign sample",
            got=", ".join(wrong),
            expected=f"options of {kind} models: {', '.join(own.values())}",
        )
        raise ConfigError(message)
    given = {name: value for name, value in options.items() if value is not None and name not in other}
    if language:
        from mmalign.vlm import sampling as answers

        return answers.main(model=model, run=run, **given)
    if kind == "audio":
        from mmalign.audio import comparing as sounds

        return sounds.main(model=model, run=run, **given)
    if kind == "video":
        from mmalign.video import comparing as clips

        return clips.main(model=model, run=run, **given)
    from mmalign.diffusion import sampling as pictures

    return pictures.main(model=model, run=run, **given)


def _modality(model: str | None, run: Path | None, options: Mapping[str, Any]) -> str:
    """What a run or a model makes; without either, what is complained of later."""
    if run is not None:
        from mmalign.train.run_folders import run_modality

        return run_modality(Path(run))
    if options.get("family") is not None:
        from mmalign import registry

        return registry.modality(str(options["family"]))
    if model is None:
        return "image"
    if _makes_sound(model):
        return "audio"
    if _makes_clips(model):
        return "video"
    return "language" if _says_transformers(model) else "image"


def _makes_sound(source: str) -> bool:
    """Whether some family of sound reads a folder or hub id; a single file is none of theirs."""
    from mmalign.audio.trained import recognise

    return _recognised(source, recognise)


def _makes_clips(source: str) -> bool:
    """Whether some family of video does; files of VideoCrafter are checkpoints of their own."""
    from mmalign.video.trained import recognise
    from mmalign.video.videocrafter_source import is_checkpoint

    return is_checkpoint(source) if Path(source).is_file() else _recognised(source, recognise)


def _recognised(source: str, recognise: Callable[[str], object]) -> bool:
    if Path(source).is_file():
        return False
    try:
        recognise(source)
    except ConfigError:
        return False
    return True


def _says_transformers(source: str) -> bool:
    """Whether a model is one of transformers: its folder, or its hub repository, has no diffusers index."""
    folder = Path(source)
    if folder.is_file():
        return False
    if folder.is_dir():
        names: Sequence[str] = [path.name for path in folder.iterdir()]
        return "config.json" in names and "model_index.json" not in names and _has_type(folder)
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json"), str) and not isinstance(
        try_to_load_from_cache(source, "model_index.json"), str
    )


def _has_type(folder: Path) -> bool:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = explain(
            f"--model {folder}", got=f"[{error}]", expected="a folder with a readable config.json"
        )
        raise ConfigError(message) from error
    return "model_type" in content
