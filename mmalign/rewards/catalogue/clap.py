"""CLAP score: how well a text describes a sound, with the checkpoint and what is heard in its name."""

from functools import partial

from mmalign.rewards import clap
from mmalign.rewards.card import Card
from mmalign.rewards.clap_models import CLAP_CHECKPOINTS, TEXT_LIMIT

CARD = Card(
    name="clap",
    title="CLAP score: cosine of sound and caption; the loaded reward's name says checkpoint and windows",
    modality="audio",
    scale="cosine in [-1, 1], typically 0.2 to 0.6; no two checkpoints have one scale",
    weights=(CLAP_CHECKPOINTS["htsat-unfused"],),
    paper="2211.06687",
    official_code="LAION-AI/CLAP",
    licence="Apache-2.0",
    text_limit=TEXT_LIMIT,
    pixels="48 kHz, one channel, windows of 10 s; shorter sounds are repeated and filled with silence",
    options={
        "checkpoint": f"{', '.join(CLAP_CHECKPOINTS)} (default htsat-unfused), or a hub id of a CLAP model.",
        "windows": "first (default): the first 10 s. all: mean over every 10 s. overview: the fused "
        "checkpoints' view of the whole.",
        "level": "file (default): as loud as it is. peak: largest amplitude at -1 dB, as "
        "stable-audio-metrics does.",
        "channels": "mean (default) of all, or the first.",
    },
    departures=(
        "No revision is pinned: the digest of the weights is in the loaded reward's name, the files' hashes "
        "are in its fingerprint.",
        "Long sounds are cut at fixed places; the released code and the library draw random crops.",
        "Of fused checkpoints every sound is read as a long one, as the released code does with one sound at "
        "a time; of several short ones it picks one at random.",
        "Sounds are not rounded to 16 bits after resampling, which moves a cosine by about 1e-5.",
        "The released 630k-audioset-best checkpoint prepares sounds by torchaudio's mel bank; the library's "
        "unfused models use librosa's.",
    ),
    extra="audio",
)
build = partial(clap.build, CARD, checkpoint="htsat-unfused")
