"""What models make that are no folders of files: looked up in their configurations, nothing is loaded."""

from pathlib import Path

import yaml

from mmalign.errors import ConfigError

__all__ = ["makes_clips"]

_RUN_CONFIG = "mmalign_config.yaml"
_INDEX = "model_index.json"


def makes_clips(source: str) -> bool:
    """Whether a model is one of video: a run of one, a pipeline folder, or a hub id of a family of video.

    Args:
        source: as users name models.
    """
    path = Path(source)
    for run in (path, path.parent.parent):
        if (run / _RUN_CONFIG).is_file() and (run == path or path.parent.name == "checkpoints"):
            configured = yaml.safe_load((run / _RUN_CONFIG).read_text(encoding="utf-8"))
            return isinstance(configured, dict) and "video" in configured
    if path.exists() and not (path / _INDEX).is_file():
        return False
    if not path.exists() and source.count("/") != 1:
        return False
    from mmalign.video.trained import recognise

    try:
        recognise(source)
    except ConfigError:
        return False
    return True
