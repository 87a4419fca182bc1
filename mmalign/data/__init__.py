"""Preference data: settings, readers, validation, order, and the cache of encoded inputs."""

from mmalign.data.config import DataConfig, ImageLimits, SourceConfig
from mmalign.data.media import DecodedImage, decode_image, read_media, safe_path
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import FieldError, Quarantine, RowIssue, RowReport, issue_of
from mmalign.data.sampler import RowOrder, step_positions

__all__ = [
    "DataConfig",
    "DecodedImage",
    "FieldError",
    "ImageLimits",
    "Quarantine",
    "RowIssue",
    "RowOrder",
    "RowReport",
    "RowTable",
    "SourceConfig",
    "decode_image",
    "issue_of",
    "open_rows",
    "read_media",
    "safe_path",
    "step_positions",
]
