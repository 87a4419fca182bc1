"""Which tokens two answers do not share: the corrected spans that dense losses weigh."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

from mmalign.errors import ConfigError, explain

__all__ = ["changed_tokens"]


def changed_tokens(
    chosen: Sequence[Hashable],
    rejected: Sequence[Hashable],
    *,
    min_match: int = 3,
    autojunk: bool = False,
) -> tuple[list[bool], list[bool]]:
    """Whether each token of the chosen and of the rejected answer lies in a span that was replaced.

    A span is replaced when both answers have tokens between two shared runs; where only one of them has,
    nothing is marked (insertions and deletions). Pass completions only: prompts and padding match, too.

    Args:
        chosen: token ids, or words.
        rejected: the same of the other answer.
        min_match: >= 1; shared runs that are shorter do not count as shared (3 in RLHF-V, 1 in RRPO).
        autojunk: leave frequent tokens out of the search for runs once an answer has 200 tokens. Released
            code has it on by default of the standard library, and spans grow with the length of the answer.

    Raises:
        ConfigError: min_match below 1.

    Source: RLHF-V/RLAIF-V, utils/diff_lib.py.
    """
    if min_match < 1:
        raise ConfigError(explain("changed_tokens min_match", got=min_match, expected="a number >= 1"))
    runs = SequenceMatcher(None, chosen, rejected, autojunk=autojunk).get_matching_blocks()
    marks = [False] * len(chosen), [False] * len(rejected)
    starts = 0, 0
    for run in runs:
        # The last run is empty and stands at the end of both.
        if run.size and run.size < min_match:
            continue
        spans = range(starts[0], run.a), range(starts[1], run.b)
        if all(spans):
            for side, span in zip(marks, spans, strict=True):
                side[span.start : span.stop] = [True] * len(span)
        starts = run.a + run.size, run.b + run.size
    return marks
