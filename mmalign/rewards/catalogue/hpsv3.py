"""HPSv3, human preference score of a picture for a prompt, version 3."""

from functools import partial

from mmalign.rewards import human_preference
from mmalign.rewards.card import Card, Weights

CARD = Card(
    name="hpsv3",
    title="HPSv3: human preference of a picture for a prompt, with its uncertainty",
    modality="image",
    outputs=("score", "sigma"),
    scale="mu of a normal variable, about -2 to 15; sigma is its standard deviation",
    weights=(
        Weights("MizzenAI/HPSv3", ("HPSv3.safetensors",), role="model"),
        Weights("Qwen/Qwen2-VL-7B-Instruct", ("*.j*",), role="base"),
    ),
    paper="2508.03789",
    official_code="MizzenAI/HPSv3",
    licence="unknown (code: MIT)",
    pixels="about 200 704 pixels (448 x 448) at its own aspect ratio, sides multiples of 28",
    options={
        "positions": "sequential (as trained, the default) or mrope (as today's library would)",
        "template": "file or folder that holds the published instruction",
        "template_sha256": "hashes of another instruction and tail, separated by a comma: another reward",
        "pixels": "area pictures are brought to, 200704",
    },
    departures=(
        "No revision is pinned: the files' hashes are in the fingerprint.",
        "A prompt that holds a special token is broken by a space there; the official code reads the token.",
        "float32 unless asked otherwise; the official code runs the body in bfloat16.",
    ),
)
build = partial(human_preference.build, CARD)
