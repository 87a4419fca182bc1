"""What a loaded model and CLIP say of the next sentence of an answer, and recipe csr, which asks them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mmalign.batch import PreferenceRow
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.calibrated import Search, calibrated_pairs, searched
from mmalign.vlm.pair_making.on_policy import extremes, paired_by_score
from mmalign.vlm.pair_making.requests import Request
from mmalign.vlm.pair_making.work import Made, Work
from mmalign.vlm.pair_making.writing import VlmWriter, begin, model_inputs

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["PictureRelevance", "VlmContinuations", "self_rewarded"]


@dataclass(frozen=True)
class VlmContinuations:
    """Mean log-probability per token of a sentence behind the words before it.

    Args:
        model: of any family.
    """

    model: "VlmModel"

    @torch.no_grad()
    def __call__(
        self, rows: Sequence[PreferenceRow], before: Sequence[str], sentences: Sequence[str]
    ) -> list[float]:
        """One number per row, beginning and sentence; NaN where the sentence adds no token.

        Raises:
            RowError: a prompt cannot be read.
        """
        network = bare(self.model.network).model
        found = []
        for row, begun, sentence in zip(rows, before, sentences, strict=True):
            earlier = begin(self.model, Request(row, prefix=begun)).ids.tolist()
            whole = begin(self.model, Request(row, prefix=f"{begun} {sentence}".strip()))
            ids = whole.ids.tolist()
            # A tokenizer may join the last letters before with the first of the sentence: they count, too.
            start = next(
                (n for n, (one, other) in enumerate(zip(earlier, ids, strict=False)) if one != other),
                min(len(earlier), len(ids)),
            )
            if start == len(ids):
                found.append(math.nan)
                continue
            logits = network(**model_inputs(self.model, [whole]), use_cache=False).logits[0]
            shares = logits[start - 1 : -1].float().log_softmax(dim=-1)
            wanted = whole.ids[start:, None].to(shares.device)
            found.append(float(shares.gather(1, wanted).mean()))
        return found


@dataclass(frozen=True)
class PictureRelevance:
    """How well a reward of pictures finds a text in a row's picture, never below 0.

    Args:
        reward: CLIPScore, 100 * cosine.
        batch_size: pictures together.
        column: of the reward's outputs.
    """

    reward: Reward
    batch_size: int = 16
    column: int = 0

    def __call__(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> list[float]:
        """max(value, 0) of every row's picture and text; NaN where the reward failed."""
        samples = [Sample(prompt=text, image=row.images[0]) for row, text in zip(rows, answers, strict=True)]
        scored = self.reward.score(samples, batch_size=self.batch_size)
        return scored.values[:, self.column].clamp(min=0.0).tolist()


def self_rewarded(work: Work) -> Made:
    """Recipe csr, carried out: pairs, or the answers to imitate.

    Raises:
        ConfigError: the reward is not there.
    """
    settings, policy = work.plan.csr, work.models.policy
    shown = [row for row in work.rows if len(row.images) == 1]
    reward = work.tools.reward(settings.reward, device=work.models.device)
    column = reward.card.outputs.index(settings.reward.output) if settings.reward.output else 0
    answers, sentences, counts = searched(
        shown,
        VlmWriter(policy, work.plan.batch_size),
        VlmContinuations(policy),
        PictureRelevance(reward, settings.reward.batch_size, column),
        work.stages,
        search=Search(
            settings.beams, settings.branches, settings.sentences, settings.image_share, settings.combine
        ),
        sampling=replace(work.sampling, max_new_tokens=settings.sentence_tokens),
        settings={"reward": reward.fingerprint()},
    )
    counts["not_one_image"] = len(work.rows) - len(shown)
    if work.plan.rows != "pairs":
        made = work.imitated(answers)
        made.counts.update(counts)
        return made
    pairs, left_out = paired_by_score(answers, rule=extremes, seed=work.plan.seed)
    made_by = {"reward": dict(reward.provenance())}
    return Made(calibrated_pairs(pairs, answers, sentences), [], counts + left_out, facts=made_by)
