"""How the golden cases of hallucination benchmarks call the public interface. No formula stands here."""

from collections.abc import Callable
from typing import Any

import torch

from mmalign.evals.benchmarks import amber, chair, mmhal, object_halbench, pope, videohallucer
from mmalign.evals.benchmarks._objects import Form
from mmalign.testing.parity import Case

Results = dict[str, Any]


def number(value: float | list[float]) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pope_case(case: Case) -> Results:
    rows = [
        {"answer": answer, "label": label}
        for answer, label in zip(case["answers"], case["labels"], strict=True)
    ]
    found = pope.score_answers(rows)
    cells = {name: number(float(getattr(found.counts, name.lower()))) for name in ("TP", "FP", "TN", "FN")}
    numbers = {name: number(value) for name, value in found.metrics().items() if name in case.outputs}
    return {"parsed": [item.parsed for item in found.items], **cells, **numbers}


def looked_up(case: Case, form: Form, table: str) -> chair.ObjectVocabulary:
    """The case's vocabulary, with its tokenizer (white space) and its table of singulars."""
    singulars = case[table]
    return chair.ObjectVocabulary.from_lines(
        case["synonyms_lines"],
        form,
        tokenise=str.split,
        singularise=lambda word: singulars.get(word, word),
    )


def chair_case(case: Case) -> Results:
    vocabulary = looked_up(case, "original", "singular")
    truth = chair.ground_truth(case["instances"], case["gt_captions"], vocabulary)
    rows = [{"image_id": int(image), "caption": text} for image, text in case["captions"].items()]
    found = chair.score_answers(rows, truth, vocabulary)
    sentences = [
        {
            "image_id": int(item.image),
            "generated_nodes": [mention.node for mention in item.mentions],
            "gt_objects": sorted(item.truth),
            "hallucinated": [[mention.word, mention.node] for mention in item.hallucinated],
            "words_after_double_word_merge": vocabulary.words(row["caption"]),
            "chair_i": item.hallucinated_share,
        }
        for item, row in zip(found.items, rows, strict=True)
    ]
    return {"CHAIRs": number(found.chair_s), "CHAIRi": number(found.chair_i), "sentences": sentences}


def caption_numbers(found: chair.CaptionResult) -> dict[str, Any]:
    sentences = [
        {
            "image_id": int(item.image),
            "generated": [mention.node for mention in item.mentions],
            "gt": sorted(item.truth),
            "hallucinated": [mention.word for mention in item.hallucinated],
        }
        for item in found.items
    ]
    metrics = {
        "CHAIRs": found.chair_s,
        "CHAIRs_refine": found.response_rate,
        "CHAIRi": found.chair_i,
        "obj_rec": found.recall,
        "sentence_num": len(found.scored),
        "coco_sentence_num": found.with_objects,
        "coco_word_count": found.correct_classes,
        "gt_word_count": found.truth_classes,
        "avg_word_len": found.mean_length,
    }
    return {"metrics": metrics, "sentences": sentences}


def object_halbench_case(case: Case) -> Results:
    vocabulary = looked_up(case, "refined", "lemma")
    truth = chair.ground_truth(case["instances"], case["gt_captions"], vocabulary)
    rows = [
        {"image_id": int(image), "caption": text, "objects": case["objects"][image]}
        for image, text in case["captions"].items()
    ]
    return {
        "caption_mode": caption_numbers(object_halbench.score_captions(rows, truth, vocabulary)),
        "object_list_mode": caption_numbers(object_halbench.score_objects(rows, truth, vocabulary)),
    }


def mmhal_case(case: Case) -> Results:
    rows = [{"judgement": text} for text in case["judge_texts"]]
    found = mmhal.score_answers(rows, expected=case.hyperparameters["questions"])
    return {
        "average_score_2dp": number(round(found.score, 2)),
        "hallucination_rate_2dp": number(round(found.hallucination_rate, 2)),
        "per_type_average_2dp": number([round(value, 2) for value in found.by_type.values()]),
        "informativeness_percent": number(found.informativeness),
    }


def videohallucer_case(case: Case) -> Results:
    found = videohallucer.score_answers(case["items"])
    return {name: number(value) for name, value in found.metrics().items() if name in case.outputs}


def amber_case(case: Case) -> Results:
    reference = amber.AmberReference.of(case["annotations"], case["association"], case["global_safe_words"])
    similarity = amber.SimilarityTable(
        tuple((a, b, float(value)) for a, b, value in case["similarity_pairs"])
    )
    threshold = case.hyperparameters["similarity_threshold_strict"]
    found = amber.score_answers(case["responses"], reference, similarity=similarity, threshold=threshold)
    told = found.generative.metrics() if found.generative is not None else {}
    groups = {
        "discriminative" if name == "all" else name: part for name, part in found.discriminative.items()
    }
    return {
        "generative": {name: told[name] for name in ("CHAIR", "Cover", "Hal", "Cog")},
        **{name: part.metrics() for name, part in groups.items()},
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "amber": amber_case,
    "chair": chair_case,
    "mmhal_score": mmhal_case,
    "object_halbench": object_halbench_case,
    "pope": pope_case,
    "videohallucer": videohallucer_case,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
