"""How the golden cases of CLIP-type rewards call the public interface. No formula of a reward stands here."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from mmalign.rewards import clip_scores, frames, pixels
from mmalign.rewards.aesthetic_head import AestheticHead
from mmalign.testing.parity import Case

Results = dict[str, Any]


def clip(case: Case) -> Results:
    log_scale = case.hyperparameters["log_logit_scale"]
    text = case["text_embedding"][None]
    references = clip_scores.cosine(case["reference_caption_embeddings"], text)
    cosines = clip_scores.cosine(case["image_embeddings"], text)
    picks = clip_scores.pick_score(cosines, log_scale)
    scores = clip_scores.clip_score(cosines)
    repeated = references.expand(len(scores), -1)
    assert case.hyperparameters["clipscore_w"] == clip_scores.CLIPSCORE_WEIGHT
    return {
        "cosine": cosines,
        "pickscore": picks,
        "pickscore_probs": clip_scores.candidate_probabilities(picks),
        "pickscore_over_26": clip_scores.pick_score_as(picks, "per_26", log_scale=log_scale),
        "hps_score": cosines,
        "hps_benchmark": clip_scores.percent(cosines),
        "clipscore": scores,
        "torchmetrics_clip_score": clip_scores.percent(cosines),
        "ref_text_max_cosine": references.max(),
        "refclipscore": clip_scores.reference_clip_score(scores, repeated),
    }


def filled_state(sizes: list[int], w_amp: float, b_amp: float) -> dict[str, torch.Tensor]:
    """Weights as the case's integer formula fills them, under the published keys."""
    state = {}
    for k, (place, (inner, outer)) in enumerate(zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True)):
        o = torch.arange(outer, dtype=torch.int64)[:, None] + 1
        i = torch.arange(inner, dtype=torch.int64)[None] + 1
        whole = (7919 * o + 10473 * i + 31 * o * i + 17 * k) % 2003
        state[f"layers.{place}.weight"] = w_amp / inner**0.5 * (whole.double() / 1001 - 1)
        state[f"layers.{place}.bias"] = b_amp * (((37 * o[:, 0] + 11 * k) % 101).double() / 50 - 1)
    return state


def aesthetic(case: Case) -> Results:
    given = case.hyperparameters
    state = filled_state(given["layer_sizes"], given["w_amp"], given["b_amp"])
    head = AestheticHead.from_state(state, where="the case").to(case["rows"].dtype)
    a, f, p, q = (case["rows"][:, [column]].double() for column in range(4))
    i = torch.arange(given["layer_sizes"][0], dtype=torch.float64)[None] + 1
    embeddings = (a * torch.sin(f * i + p) + q * torch.cos(0.003 * i)).to(case["rows"].dtype)
    layers = head.layers(embeddings)
    raw = embeddings
    for layer in head.linear:
        raw = layer(raw)
    return {
        "norm": embeddings.norm(dim=-1),
        "first_three_of_each_linear": [layer[:, :3] for layer in layers],
        "score": head(embeddings),
        "score_without_normalising": raw[:, 0],
    }


def image_geometry(height: int, width: int, size: int) -> Results:
    resized = pixels.longest_size(height, width, size)
    short = pixels.shortest_size(height, width, size)
    return {
        "hw": [height, width],
        "hpsv2_resize_longest_pad": {
            "resized_hw": list(resized),
            "pad_left_top_right_bottom": list(pixels.pad_margins(*resized, size)),
        },
        "clip_shortest_edge_center_crop": {
            "resized_hw": list(short),
            "crop_top_left_torchvision": [pixels.crop_offset(side, size, rule="even") for side in short],
            "crop_top_left_hf": [pixels.crop_offset(side, size, rule="floor") for side in short],
        },
        "spo_resize": list(pixels.shortest_size(height, width, size, rounding="nearest")),
        "qwen_hpsv3": list(frames.smart_resize(height, width, min_pixels=200704, max_pixels=200704)),
        "qwen_default": list(frames.smart_resize(height, width)),
        "qwen_videoreward": list(frames.smart_resize(height, width, min_pixels=100352, max_pixels=200704)),
    }


def clip_frames(total: float, video_fps: float, fps: float) -> Results:
    count = frames.num_frames(int(total), video_fps, fps)
    indices = frames.even_frames(int(total), count).tolist()
    return {
        "total_frames": int(total),
        "video_fps": video_fps,
        "target_fps": fps,
        "nframes": count,
        "first_indices": indices[:6],
        "last_index": indices[-1],
    }


def geometry(case: Case) -> Results:
    size = case.hyperparameters["target"]
    return {
        "images": [image_geometry(*sides, size) for sides in case["image_sizes_hw"].tolist()],
        "videos": [clip_frames(*clip) for clip in case["videos"].tolist()],
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_aesthetic_mlp": aesthetic,
    "eval_clip_scores": clip,
    "eval_preprocess_geometry": geometry,
}
LEFT_OUT: dict[str, dict[str, str]] = {}
