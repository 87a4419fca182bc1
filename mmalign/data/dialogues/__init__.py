"""Vision-language preference data: dialogues with images and videos, in the layouts of public sets.

`open_rows` recognises them by their columns; its rows then have `messages`, `images` and `videos`.
"""

from mmalign.data.dialogues.formats import FORMATS, ROLES, DialogueFormat
from mmalign.data.dialogues.matching import match_dialogues
from mmalign.data.dialogues.media import video_frames
from mmalign.data.dialogues.spans import Span, changed_spans, marked_spans
from mmalign.data.dialogues.table import DialogueTable, with_revised

__all__ = [
    "FORMATS",
    "ROLES",
    "DialogueFormat",
    "DialogueTable",
    "Span",
    "changed_spans",
    "marked_spans",
    "match_dialogues",
    "video_frames",
    "with_revised",
]
