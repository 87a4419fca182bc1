"""VQAScore by CLIP-FlanT5, the model of the paper."""

from functools import partial

from mmalign.rewards import clip_flant5
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.clip_backbones import BACKBONES

CARD = Card(
    name="vqascore_flant5",
    title="VQAScore by CLIP-FlanT5-XXL: does the picture show the prompt?",
    modality="image",
    scale="sqrt(P(Yes) P(end | Yes)), 0 to 1",
    weights=(
        Weights("zhiqiulin/clip-flant5-xxl", ("config.json", "*model*"), role="model"),
        Weights("google/flan-t5-xxl", ("tokenizer*.json",), role="tokenizer"),
        Weights(
            "openai/clip-vit-large-patch14-336",
            ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
            revision=BACKBONES["vit-l-14-336"].revision,
            role="base",
        ),
    ),
    paper="2404.01291",
    official_code="linzhiqiu/t2v_metrics",
    licence="unknown (code: Apache-2.0)",
    text_limit=2048,
    pixels="336 x 336, padded to a square with the mean colour",
    options={"question": "with one {} for the prompt", "size": "xxl (the default, 11 B) or xl (3 B)"},
    departures=(
        "No revision of model and tokenizer is pinned: the files' hashes are in the fingerprint.",
        "float32 unless asked otherwise; the official code runs in bfloat16.",
        "A prompt that holds a special token is broken by a space there.",
    ),
)
build = partial(clip_flant5.build, CARD)
