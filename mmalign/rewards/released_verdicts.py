"""What published scripts read from a judge's answer, slips included.

They exist to reproduce published numbers. Each turns some unreadable answers into a score or a win; the
readers in `mmalign.rewards.verdicts` do not, and are what our scorers use.
"""

import re
from typing import Literal

from mmalign.rewards.verdicts import Choice

__all__ = [
    "released_decimal",
    "released_first_integer",
    "released_pair_choice",
    "released_prometheus_choice",
    "released_prometheus_score",
]


_LONGEST = 18
"""Digits kept of a judge's number: it may write thousands, which Python refuses to read."""


def released_first_integer(text: str) -> int:
    """The first digits behind the last `Final Score:`, or of the whole text, or 0: 3.5 is read as 3.

    The script that does this also compares scores as text, where "10" is less than "4".

    Source: CodeGoat24/UnifiedReward, VideoDPO/sift_dpo_data.py.
    """
    digits = re.search(r"\d+", text.rpartition("Final Score:")[2])
    return int(digits.group()[:_LONGEST]) if digits else 0


def released_decimal(text: str) -> float:
    """The first `Final Score:` followed by a digit 1 to 5 and decimals, or 0: 10 is read as 1.

    Source: yifan123/flow_grpo, flow_grpo/rewards.py (which divides by 5 afterwards).
    """
    found = re.search(r"Final Score:\s*([1-5](?:\.\d+)?)", text)
    return float(found.group(1)) if found else 0.0


def released_pair_choice(text: str, *, phrase: str = "Image 2 is better") -> Choice:
    """Two where the phrase stands in the text, else one: a tie, a refusal and no verdict all win for one.

    Source: CodeGoat24/UnifiedReward, VideoDPO/sift_dpo_data.py (`Video 2 is better than Video 1`) and
    DiffusionDPO/sift_dpo_data.py.
    """
    return "two" if phrase in text else "one"


_RELEASED_SCORE = re.compile(
    r"(?:\[result\]:?|\[score\]|result:?|score(?::|\s+of)?)[\s(\[]*(\d+)(?:[)\]\s]|/\s*5|\s*out\s*of\s*5)?\s*$",
    re.IGNORECASE,
)
_RELEASED_LETTER = re.compile(
    r"(?:\[result\](?:\s+response)?|\[result:|\[response\s|^result:?)\s*([AB])\]?\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def released_prometheus_score(text: str) -> int | None:
    """The score an answer ends with, after `[RESULT]`, `[SCORE]`, `Score`, `Result` or `score of`; 1 to 5.

    Source: prometheus-eval/prometheus-eval, prometheus_eval/parser.py; its version in use is anchored to the
    end of the answer.
    """
    found = _RELEASED_SCORE.search(text)
    return int(found.group(1)[-1]) if found and 1 <= float(found.group(1)) <= 5 else None


def released_prometheus_choice(text: str) -> Literal["A", "B"] | None:
    """The letter that ends the first line whose end is `[RESULT] A`, `[Response B]`, `Result: A` or kin.

    Source: as `released_prometheus_score`.
    """
    found = _RELEASED_LETTER.search(text)
    if found is None:
        return None
    return "A" if found.group(1).upper() == "A" else "B"
