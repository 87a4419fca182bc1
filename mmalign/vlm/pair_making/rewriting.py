"""Recipe prompt_writer, carried out: rewrites, pictures, scores, distances, rows."""

from dataclasses import replace
from functools import partial

from mmalign.errors import ConfigError, explain
from mmalign.vlm import prompt_writer as writing
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.work import Made, Work
from mmalign.vlm.rewrite_scores import scored
from mmalign.vlm.rewrite_selection import rewrite_answers, rewrite_pairs

__all__ = ["rewritten"]


def rewritten(work: Work) -> Made:
    """Pairs of rewrites, the best of them, or all under their marks: one mark per reward.

    Raises:
        ConfigError: a painter, reward or sentence encoder is not there.
    """
    settings = work.plan.prompt_writer
    if settings is None:
        raise ConfigError(explain("prompt_writer", got="[none]", expected="a painter and rewards"))
    paint = work.tools.painter(settings.painter, work.models.device)
    asked = replace(work, rows=[writing.instructed(row, settings) for row in work.rows])
    prompts = [row.prompt for row in work.rows]
    found = writing.compared(asked.own_answers(), prompts, original=settings.beat_original)
    found = writing.painted(found, paint, work.stages, settings)
    del paint  # its model makes room for the rewards
    found = scored(found, partial(work.tools.reward, device=work.models.device), work.stages, settings)
    if settings.similarity is not None:
        encoder = work.tools.similarity(settings.similarity, work.models.device)
        found = writing.distances(found, encoder, work.stages, settings.similarity)
    if work.plan.rows == "pairs":
        pairs, counts = rewrite_pairs(found, settings)
        return Made(pairs, [], counts)
    tables = {
        reward.column: [[one.scores[place][number] for place in one.written] for one in found]
        for number, reward in enumerate(settings.rewards)
    }
    if work.plan.rows == "conditioned":
        texts = [OwnAnswers(one.row, tuple(one.texts[p] for p in one.written)) for one in found]
        return work.imitated(texts, tables)
    return work.imitated(rewrite_answers(found, settings))
