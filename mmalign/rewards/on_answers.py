"""Any reward as what scores the answers of a language model: a judge of answers, a rubric, a function."""

from collections.abc import Sequence
from typing import Literal

from mmalign.batch import PreferenceRow
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["OnAnswers", "answer_sample"]


def answer_sample(
    row: PreferenceRow, answer: str, *, judged_as: Literal["answer", "caption"] = "answer"
) -> Sample:
    """What a reward sees of an answer.

    The last picture is the one that is judged beside it; others stand before it as `extras["shown"]`.
    A video is handed on as its file or its frames. Columns of the row that no layout claims are extras.

    Args:
        row: what was asked.
        answer: what was said.
        judged_as: "caption" hands the answer over as the picture's own text, which rewards of pictures read
            as their prompt (CLIP score); "answer" as the answer to the row's prompt.
    """
    extras = dict(row.extras)
    if len(row.images) > 1:
        extras["shown"] = list(row.images[:-1])
    video = row.videos[0] if row.videos else None
    frames = video if isinstance(video, tuple) else None
    return Sample(
        prompt=answer if judged_as == "caption" else row.prompt,
        image=row.images[-1] if row.images else None,
        frames=frames,
        text=answer,
        video=video if isinstance(video, str) else None,
        extras=extras,
        id=row.id,
    )


class OnAnswers:
    """A reward over answers.

    Args:
        reward: any reward; what it says first counts.
        judged_as: what it reads; see `answer_sample`.
        batch_size: answers that it looks at together; changes no value.

    Attributes:
        name: of the reward.
    """

    def __init__(
        self, reward: Reward, *, judged_as: Literal["answer", "caption"] = "answer", batch_size: int = 16
    ) -> None:
        self.reward, self.judged_as, self.batch_size = reward, judged_as, batch_size
        self.name = reward.card.name
        self._sign = 1.0 if reward.card.higher_is_better else -1.0

    def score_answers(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> list[float]:
        """The reward's first output per answer, higher is better; NaN where it failed.

        Args:
            rows: what was asked.
            answers: one per row.
        """
        samples = [
            answer_sample(row, answer, judged_as=self.judged_as)
            for row, answer in zip(rows, answers, strict=True)
        ]
        found: list[float] = self.reward.score(samples, batch_size=self.batch_size).first().tolist()
        return [self._sign * value for value in found]
