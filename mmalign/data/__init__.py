"""Preference data: settings, readers, validation, order, and the cache of encoded inputs.

Also functions from rows to rows (pairs of rankings, stages, conditioned prompts, filters) and from rows to
numbers (length bias, contradictions, score gaps, separability); `mmalign data derive` and `audit` run them
over files.
"""

from mmalign.data.audio_media import DecodedAudio, decode_audio, read_audio
from mmalign.data.conditioning import directional, few_shot, reward_augmented
from mmalign.data.config import AudioLimits, DataConfig, ImageLimits, SourceConfig, VideoLimits
from mmalign.data.curation import consistency, keep_lowest, length_bias, score_gaps
from mmalign.data.curriculum import curriculum_stages
from mmalign.data.media import DecodedImage, decode_image, read_media, safe_path
from mmalign.data.pairing import cap_per_prompt, make_pairs, score_gap
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import FieldError, Quarantine, RowIssue, RowReport, issue_of
from mmalign.data.sampler import RowOrder, step_positions
from mmalign.data.separability import linear_separability
from mmalign.data.video_media import DecodedClip, decode_clip, decode_clips, describe_clip
from mmalign.data.video_writers import clip_strip, encode_clip, write_clip

__all__ = [
    "AudioLimits",
    "DataConfig",
    "DecodedAudio",
    "DecodedClip",
    "DecodedImage",
    "FieldError",
    "ImageLimits",
    "Quarantine",
    "RowIssue",
    "RowOrder",
    "RowReport",
    "RowTable",
    "SourceConfig",
    "VideoLimits",
    "cap_per_prompt",
    "clip_strip",
    "consistency",
    "curriculum_stages",
    "decode_audio",
    "decode_clip",
    "decode_clips",
    "decode_image",
    "describe_clip",
    "directional",
    "encode_clip",
    "few_shot",
    "issue_of",
    "keep_lowest",
    "length_bias",
    "linear_separability",
    "make_pairs",
    "open_rows",
    "read_audio",
    "read_media",
    "reward_augmented",
    "safe_path",
    "score_gap",
    "score_gaps",
    "step_positions",
    "write_clip",
]
