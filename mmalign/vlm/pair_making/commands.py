"""`mmalign pairs make`: a plan carried out, from prompts to rows that training reads."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.batch import DataKind, PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.data.pair_making.output import Provenance
from mmalign.data.pair_making.progress import print_made, stage_bars
from mmalign.data.pair_making.rows import require_few_bad, rows_to_work_on
from mmalign.data.pair_making.stages import Stages, read_given
from mmalign.errors import RowError
from mmalign.vlm.pair_making import bias_driven as bias
from mmalign.vlm.pair_making import on_policy, perturbation, self_judging
from mmalign.vlm.pair_making.claims import judge_claims
from mmalign.vlm.pair_making.composing import multi_image_pairs
from mmalign.vlm.pair_making.following import VlmFollowUps
from mmalign.vlm.pair_making.loading import Models, model_name
from mmalign.vlm.pair_making.output import png, write_pairs, write_records
from mmalign.vlm.pair_making.painters import Tools
from mmalign.vlm.pair_making.plan import DialoguePairPlan, read_pair_plan
from mmalign.vlm.pair_making.rewriting import rewritten
from mmalign.vlm.pair_making.selection import balance_lengths
from mmalign.vlm.pair_making.sentence_scores import self_rewarded
from mmalign.vlm.pair_making.spoilt_clips import spoilt
from mmalign.vlm.pair_making.work import Made, Work
from mmalign.vlm.pair_making.writing import VlmWriter, VlmYesNo

__all__ = ["make_pairs", "run_make"]


def _correct(work: Work) -> Made:
    answers = work.own_answers()
    file = work.plan.correct.file
    if file is None:
        return Made(waits_for="correct.file: id, revised, and if known standard, own, report, author")
    given = on_policy.read_corrections(read_given(file, needs=("id", "revised")))
    pairs, records, counts = on_policy.corrected(answers, given)
    if pairs and records:
        # One file has one layout: OPA-DPO rows say more, so plain corrections wait for their reports.
        counts["without_report"] = len(pairs)
        counts["rows"] = len(records)
        pairs = []
    return Made(pairs, records, counts)


def _score(work: Work) -> Made:
    answers, settings = work.own_answers(), work.plan.score
    if settings.file is None:
        return Made(waits_for="score.file: id and scores, one number per answer")
    answers = on_policy.given_scores(answers, read_given(settings.file, needs=("id", "scores")))
    if work.plan.rows != "pairs":
        return work.imitated(answers)
    rule: Callable[[Sequence[float], int], list[tuple[int, int]]] = partial(
        on_policy.extremes, spread=settings.spread
    )
    if settings.pairs == "all":
        rule = partial(on_policy.all_above, difference=settings.difference, limit=settings.max_per_prompt)
    pairs, counts = on_policy.paired_by_score(answers, rule=rule, seed=work.plan.seed)
    return Made(pairs, [], counts)


def _claims(work: Work) -> Made:
    settings, size = work.plan.claims, work.plan.batch_size
    scored = judge_claims(
        work.own_answers(),
        divide=VlmWriter(work.models.writer, size),
        judge=VlmYesNo(work.models.judge, size),
        stages=work.stages,
    )
    if work.plan.rows != "pairs":
        return work.imitated(scored)
    rule = partial(on_policy.all_above, difference=settings.difference, limit=settings.max_per_prompt)
    pairs, counts = on_policy.paired_by_score(scored, rule=rule, seed=work.plan.seed)
    if settings.balance_lengths and pairs:
        balance = balance_lengths([(pair.chosen, pair.rejected) for pair in pairs])
        counts["unbalanced_length"] = len(pairs) - sum(balance.kept)
        pairs = [pair for pair, keep in zip(pairs, balance.kept, strict=True) if keep]
        counts["rows"] = len(pairs)
    return Made(pairs, [], counts)


def _self_judged(work: Work) -> Made:
    settings, size = work.plan.self_judged, work.plan.batch_size
    if settings.judges == "follow_ups":
        likely = VlmFollowUps(work.models.policy)
        score = partial(self_judging.mean_likelihood, likely, settings.follow_ups)
        scored = on_policy.score_answers(
            work.own_answers(), score, work.stages, settings={"follow_ups": list(settings.follow_ups)}
        )
        if work.plan.rows != "pairs":
            return work.imitated(scored)
        pairs, counts = on_policy.paired_by_score(scored, rule=on_policy.extremes, seed=work.plan.seed)
        return Made(pairs, [], counts)
    write, judge = VlmWriter(work.models.policy, size), VlmYesNo(work.models.policy, size)
    answers = self_judging.greedy_and_sampled(work.rows, write, work.stages, sampling=work.sampling)
    wordings = (self_judging.JUDGE,) if settings.judges == "sima" else self_judging.WORDINGS
    odds = self_judging.judged(answers, judge, work.stages, wordings=wordings)
    pairs, counts = self_judging.sima_pairs(answers, odds, least=settings.least_odds)
    return Made(pairs, [], counts)


def _multi_image(work: Work) -> Made:
    from mmalign.vlm.pair_making.looking import VlmLooker

    settings, plan = work.plan.multi_image, work.plan
    look = VlmLooker(work.models.policy, settings.layer, plan.sampling.max_new_tokens, plan.batch_size)
    single = [row for row in work.rows if len(row.images) == 1]
    pairs, counts = multi_image_pairs(
        single,
        look,
        partial(_decoded, limits=plan.data.images),
        work.stages,
        layouts=settings.layouts,
        noise=settings.noise,
    )
    counts["not_one_image"] = len(work.rows) - len(single)
    return Made(pairs, [], counts)


def _captions(work: Work) -> Made:
    from mmalign.vlm.media import FrameChoice, MediaReader

    settings, plan = work.plan.captions, work.plan
    reader = MediaReader(plan.data.images, FrameChoice(num_frames=settings.num_frames))
    shown = [row for row in work.rows if len(row.videos) == 1]
    frames = [[png(frame) for frame in reader.clip(row.videos[0], where=row.source).frames] for row in shown]
    pairs, counts = perturbation.temple_pairs(
        shown,
        frames,
        describe=VlmWriter(work.models.policy, plan.batch_size),
        summarise=VlmWriter(work.models.writer, plan.batch_size),
        stages=work.stages,
        sampling=work.sampling,
        difficulties=settings.difficulties,
    )
    counts["not_one_video"] = len(work.rows) - len(shown)
    return Made(pairs, [], counts)


def _mistakes(work: Work) -> Made:
    write = VlmWriter(work.models.writer, work.plan.batch_size)
    pairs, counts = perturbation.perturbed_words(work.rows, write, work.stages, sampling=work.sampling)
    return Made(pairs, [], counts)


def _bias_driven(work: Work) -> Made:
    from mmalign.vlm.pair_making.embedding import SentenceSimilarity

    settings = work.plan.bias_driven
    pairs, counts = bias.bias_driven(
        work.rows,
        VlmWriter(work.models.policy, work.plan.batch_size),
        SentenceSimilarity.load(settings.similarity, device=work.models.device),
        work.stages,
        config=bias.BiasConfig(settings.hidden, settings.similar, settings.rounds, settings.swap),
        sampling=work.sampling,
    )
    return Made(pairs, [], counts)


_RECIPES: dict[str, Callable[[Work], Made]] = {
    "correct": _correct,
    "score": _score,
    "claims": _claims,
    "self_judged": _self_judged,
    "multi_image": _multi_image,
    "captions": _captions,
    "mistakes": _mistakes,
    "bias_driven": _bias_driven,
    "clips": spoilt,
    "csr": self_rewarded,
    "prompt_writer": rewritten,
}


def _decoded(media: bytes | str, *, limits: ImageLimits) -> Image.Image:
    data = read_media(media, where=str(media)[:80], max_bytes=limits.max_bytes)
    return decode_image(data, where=str(media)[:80], limits=limits).image


def _usable(
    plan: DialoguePairPlan, rows: list[PreferenceRow], models: Models, stages: Stages, counts: Counter[str]
) -> list[PreferenceRow]:
    """Rows whose prompt and media the model can read: one bad picture must not end a long run.

    Raises:
        ConfigError: more than `data.max_bad_share` cannot be read.
    """

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        del seed
        return [{"problem": _problem(row, models)} for row in block]

    records = stages.run("rows", rows, work, key=lambda row: row.id)
    problems = [record["problem"] for record in records]
    found = Counter(reason for reason in problems if reason)
    counts.update(found)
    require_few_bad(counts, len(rows) + counts.total() - found.total(), plan.data)
    return [row for row, problem in zip(rows, problems, strict=True) if not problem]


def _problem(row: PreferenceRow, models: Models) -> str:
    try:
        models.policy.reader.prompt(row)
    except RowError as error:
        return error.reason
    return ""


def make_pairs(
    plan: DialoguePairPlan,
    output: Path,
    *,
    device: str | None = None,
    report: Callable[[str, int, int], None] | None = None,
    tools: Tools | None = None,
) -> tuple[Path | None, Counter[str], str]:
    """Carry out a plan; what was done before is not done again.

    Args:
        plan: models, data, recipe.
        output: folder of rows, media and `stages/`.
        device: None takes the best there is.
        report: told (stage, done, total).
        tools: what loads painters, rewards and sentence encoders; default: painters that are functions.

    Returns:
        `rows.jsonl` (None while a file is waited for), counts by reason, and what that file must hold.

    Raises:
        ConfigError: the plan, its data or a model does not fit, or too many rows cannot be read.
    """
    from mmalign.devices import best_device

    unusable: Counter[str] = Counter()
    kind: DataKind = "chosen" if plan.needs_truth else "prompts"
    rows = rows_to_work_on(plan.data, kind=kind, limit=plan.limit, counts=unusable)
    models = Models(plan, str(best_device(device)))
    maker = model_name(models.policy)
    aside = {"data", "limit", "correct", "score"}
    settings = plan.model_dump(mode="json", exclude=aside | {"block_rows", "seed"})
    named = {"maker": maker, "judge": model_name(models.judge), "writer": model_name(models.writer)}
    # Stages do not depend on what is done with their records afterwards.
    stage_settings = {**named, "tokens": settings["tokens"], "batch_size": plan.batch_size}
    stages = Stages(output / "stages", stage_settings, plan.seed, plan.block_rows, report)
    rows = _usable(plan, rows, models, stages, unusable)
    made = _RECIPES[plan.recipe](Work(plan, models, rows, stages, tools or Tools()))
    made.counts.update(unusable)
    made.counts["unanswered"] = stages.unanswered.total()
    made.counts = +made.counts  # what happened never is not told
    if made.waits_for:
        return None, made.counts, made.waits_for
    whole = {**plan.model_dump(mode="json"), **named}
    provenance = Provenance(plan.recipe, maker, whole, plan.seed)
    if made.records:
        return write_records(output, made.records, provenance, made.counts), made.counts, ""
    return write_pairs(output, made.pairs, provenance, made.counts, made.facts), made.counts, ""


def run_make(
    *,
    plan_path: Path,
    output: Path,
    device: str | None = None,
    overrides: Sequence[str] = (),
    tools: Tools | None = None,
) -> int:
    """Make pairs by a plan. Returns 0.

    Raises:
        ConfigError: the plan, its data or a model does not fit.
    """
    plan = read_pair_plan(plan_path, overrides)
    with stage_bars() as report:
        rows, counts, waits_for = make_pairs(plan, output, device=device, report=report, tools=tools)
    if rows is None:
        print(f"answers are in {output / 'stages' / 'answers.jsonl'} (`key` is the row's id).")
        print(f"Next: write a JSONL file for {waits_for}; then run this again with it.")
        return 0
    print_made(rows, counts)
    return 0
