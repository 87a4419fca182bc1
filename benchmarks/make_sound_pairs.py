"""Preference pairs made of real recordings, as a parquet file in the layout of Audio-Alpaca. No download.

    python benchmarks/make_sound_pairs.py drums=DRUMS "interface sounds=THEME" --speech --output pairs.parquet
    mmalign data check pairs.parquet

Each KIND=FOLDER holds recordings ('drums=SAMPLES/drum_*' takes some of them); `--speech` adds sentences of
the synthesisers that are installed (espeak-ng, flite). The chosen clip is the recording; the rejected one has
noise in it, is muffled, or has its halves in the wrong order, at the same length and loudness. The prompt is
what the file's name and its kind say.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float
from recordings import Recording, Source, excerpt, licences, recordings, speech
from torch import Tensor

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_media import encode_audio
from mmalign.data.audio_writers import write_audio_alpaca
from mmalign.data.resampling import resample
from mmalign.seeding import derive_seed

__all__ = ["SPOILINGS", "make_pairs", "spoilt"]

SPOILINGS = ("noise", "muffled", "order")

MUFFLED_RATE = 2_000
"""Hz; a telephone has 8000."""

Sound = Float[Tensor, "channel sample"]


def spoilt(samples: Sound, sampling_rate: int, kind: str, generator: torch.Generator) -> Sound:
    """The same sound, worse: as many samples, equally loud in the mean square.

    Args:
        samples: in [-1, 1].
        sampling_rate: of them, Hz.
        kind: noise (white, 0 to 10 dB below the sound), muffled (nothing above 1 kHz) or order (halves
            swapped).
        generator: draws the noise and how loud it is.
    """
    power = samples.square().mean()
    if kind == "noise":
        decibels = 10.0 * torch.rand((), generator=generator)
        noise = torch.randn(samples.shape, generator=generator) * power.sqrt()
        bad = samples + noise * 10 ** (-decibels / 20)
    elif kind == "muffled":
        low = resample(samples, sampling_rate, MUFFLED_RATE)
        bad = resample(low, MUFFLED_RATE, sampling_rate)[:, : samples.shape[1]]
    elif kind == "order":
        bad = samples.roll(samples.shape[1] // 2, dims=1)
    else:
        message = f"got {kind!r}, expected one of {', '.join(SPOILINGS)}"
        raise ValueError(message)
    return bad * (power / bad.square().mean().clamp(min=1e-12)).sqrt()


def make_pairs(
    sounds: Iterable[Recording], *, seconds: float, seed: int, spoilings: Sequence[str] = SPOILINGS
) -> Iterator[PreferenceRow]:
    """One pair per recording; which spoiling it gets, and its noise, depend on the seed and its prompt."""
    names: Counter[str] = Counter()
    for number, sound in enumerate(sounds):
        good, rate = excerpt(sound.clip, seconds), sound.clip.sampling_rate
        generator = torch.Generator().manual_seed(derive_seed(seed, sound.kind, sound.name))
        kind = spoilings[number % len(spoilings)]
        bad = spoilt(good, rate, kind, generator)
        # Both get quieter where one would be clipped, so that loudness tells nothing.
        pair = torch.stack([good, bad])
        pair = pair / pair.abs().amax().clamp(min=1.0)
        name = f"{sound.kind}/{sound.name}"
        names[name] += 1
        yield PreferenceRow(
            prompt=sound.prompt,
            candidates=tuple(Candidate(audio=encode_audio(side, rate)) for side in pair),
            id=name if names[name] == 1 else f"{name} {names[name]}",
            extras={"strategy": kind},
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", type=Source.parse, metavar="KIND=FOLDER[/PATTERN]")
    parser.add_argument("--speech", action="store_true", help="add sentences of installed synthesisers")
    parser.add_argument("--seconds", type=float, default=10.0, help="longer clips are cut (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sound_pairs.parquet"))
    options = parser.parse_args()
    for source in options.sources:
        print(f"{source.kind}: {len(source.files())} files; {licences(source.folder)}")
    refused: Counter[str] = Counter()
    sounds = chain(recordings(options.sources, refused), speech() if options.speech else ())
    rows = list(make_pairs(sounds, seconds=options.seconds, seed=options.seed))
    if not rows:
        parser.error("no recording was found: name folders that hold some, or install a synthesiser")
    write_audio_alpaca(options.output, rows)
    made = Counter(str(row.extras["strategy"]) for row in rows)
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {len(rows)} pairs ({_listed(made)}), {size:.1f} MiB")
    if refused:
        print(f"left out: {_listed(refused)}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
