"""VideoReward, visual quality, motion quality and text alignment of a clip."""

from functools import partial

from mmalign.rewards import video_reward
from mmalign.rewards.card import Card, Weights

CARD = Card(
    name="videoreward",
    title="VideoReward: visual quality, motion quality and text alignment of a clip",
    modality="video",
    outputs=("overall", "VQ", "MQ", "TA"),
    scale="z-scores over the publisher's clips; overall is the sum of the three",
    weights=(
        Weights(
            "KwaiVGI/VideoReward",
            ("model_config.json", "checkpoint-*/model.pth"),
            role="model",
            bytes=5_031_072_529,
        ),
        Weights("Qwen/Qwen2-VL-2B-Instruct", ("*.j*",), role="base"),
    ),
    paper="2501.13918",
    official_code="KwaiVGI/VideoAlign",
    licence="unknown (code: MIT)",
    pixels="frames at 2 a second, each 100 352 to 200 704 pixels, sides multiples of 28",
    needs=("fps",),
    options={
        "positions": "sequential (as trained, the default) or mrope (as today's library would)",
        "template": "file or folder that holds the published instruction",
        "template_sha256": "hash of another instruction: another reward",
        "normalised": "false: the head's own unit",
    },
    departures=(
        "No revision is pinned: the files' hashes are in the fingerprint.",
        "A prompt that holds a special token is broken by a space there; the official code reads the token.",
        "Adapters are merged into the weights in float32; the official code adds their output in bfloat16.",
        "Files are decoded by PyAV; decoders differ in the frames at a clip's end.",
    ),
)
build = partial(video_reward.build, CARD)
