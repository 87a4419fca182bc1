"""What a mel spectrogram keeps of real recordings: wave to log-mel, back to a wave, and to log-mel again.

    python benchmarks/mel_round_trip.py drums=DRUMS alarms=ALARMS --speech --page docs/audio-round-trip.md

Four ways back, each compared with the recording as the model hears it (16 kHz, peak 0.5):

    bands        magnitudes from mel bands by non-negative least squares; no wave is made
    phases       a wave from the true magnitudes by Griffin-Lim: all that is lost is phase
    both         a wave from the mel bands: least squares, then Griffin-Lim
    vocoder      a wave from the mel bands by the vocoder of `--model`; `vae` also goes through its latents

A model that knows only mel spectrograms cannot sound better than what comes back here, by any of these ways.
"""

import argparse
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import log, log10
from pathlib import Path

import torch
from jaxtyping import Float
from recordings import SPEECH, Recording, Source, excerpt, recordings, speech
from torch import Tensor

from mmalign.audio.clips import as_heard
from mmalign.audio.codec import MelCodec
from mmalign.audio.mel import MelFrontEnd, fitted, log_amplitude, peak_normalised
from mmalign.data.audio_media import encode_audio
from mmalign.data.resampling import resample
from mmalign.files import atomic_write

__all__ = ["figures", "griffin_lim", "magnitudes_of_mel", "table", "ways", "ways_of_model", "write_sounds"]

Wave = Float[Tensor, " sample"]
Magnitudes = Float[Tensor, "frame frequency"]
Mel = Float[Tensor, "frame mel"]

LOUD = 60.0
"""dB below the loudest cell of a clip down to which cells count as heard."""

MARKERS = ("<!-- mel_round_trip:begin -->", "<!-- mel_round_trip:end -->")


# --- ways back ----------------------------------------------------------------------------------------------


def magnitudes_of_mel(mel: Mel, bank: Float[Tensor, "mel frequency"], *, steps: int = 200) -> Magnitudes:
    """Magnitudes S >= 0 that make `|S bank^T - exp(mel)|^2` small, near the least ones that do.

    Accelerated projected gradients from the pseudo-inverse's answer, cut at zero; the step is one over the
    largest eigenvalue of `bank^T bank`.

    Source: Beck and Teboulle 2009, FISTA.
    """
    goal = mel.exp()
    pace = 1.0 / torch.linalg.matrix_norm(bank, 2).square()
    found = (goal @ torch.linalg.pinv(bank).T).clamp(min=0.0)
    ahead, weight = found, 1.0
    for _ in range(steps):
        last, found = found, (ahead - pace * (ahead @ bank.T - goal) @ bank).clamp(min=0.0)
        following = (1.0 + (1.0 + 4.0 * weight**2) ** 0.5) / 2.0
        ahead, weight = found + (weight - 1.0) / following * (found - last), following
    return found


def griffin_lim(
    magnitudes: Magnitudes,
    front: MelFrontEnd,
    length: int,
    *,
    seed: int,
    steps: int = 64,
    momentum: float = 0.99,
) -> Wave:
    """A wave whose spectrogram has about these magnitudes, from random phases.

    Source: Griffin and Lim 1984; the momentum is that of Perraudin, Balazs and Sondergaard 2013.
    """
    window = torch.hann_window(front.win_length)
    shape = {"n_fft": front.filter_length, "hop_length": front.hop_length, "win_length": front.win_length}
    wanted = magnitudes.T
    phases = 2 * torch.pi * torch.rand(wanted.shape, generator=torch.Generator().manual_seed(seed))
    spectrum, last = torch.polar(wanted, phases), torch.zeros(())
    for _ in range(steps):
        wave = torch.istft(spectrum, **shape, window=window, length=length)
        now = torch.stft(wave, **shape, window=window, pad_mode="reflect", return_complex=True)
        ahead = now + momentum * (now - last)
        spectrum, last = wanted * ahead / ahead.abs().clamp(min=1e-12), now
    return torch.istft(spectrum, **shape, window=window, length=length)


Way = Callable[[Wave, int], Magnitudes]
"""From a recording and a seed to magnitudes of what came back."""


def ways(front: MelFrontEnd, *, steps: int) -> dict[str, Way]:
    """The ways back that need no model."""

    def heard(wave: Wave) -> Magnitudes:
        return front.magnitudes(wave[None])[0]

    def bands(wave: Wave, seed: int) -> Magnitudes:
        del seed
        return magnitudes_of_mel(front.log_mel(wave[None])[0], front.filterbank)

    def phases(wave: Wave, seed: int) -> Magnitudes:
        return heard(griffin_lim(heard(wave), front, len(wave), seed=seed, steps=steps))

    def both(wave: Wave, seed: int) -> Magnitudes:
        return heard(griffin_lim(bands(wave, seed), front, len(wave), seed=seed, steps=steps))

    return {"bands": bands, "phases": phases, "both": both}


def ways_of_model(codec: MelCodec) -> dict[str, Way]:
    """The ways back through a model's vocoder, and through its VAE and its vocoder."""
    front = codec.front

    def heard(waves: Float[Tensor, "1 1 sample"], length: int) -> Magnitudes:
        return front.magnitudes(waves[0, :, :length])[0]

    def vocoder(wave: Wave, seed: int) -> Magnitudes:
        del seed
        return heard(codec.sound_of(front.log_mel(wave[None])[None]), len(wave))

    def vae(wave: Wave, seed: int) -> Magnitudes:
        del seed
        # The VAE sees clips of one length; what is missing is silence, not frames of zeros.
        filled = fitted(wave[None, None], front.num_samples(codec.num_frames))
        return heard(codec.decode(codec.scale(codec.moments(filled).mean)), len(wave))

    return {"vocoder": vocoder, "vae": vae}


# --- figures ------------------------------------------------------------------------------------------------


def figures(front: MelFrontEnd, true: Magnitudes, found: Magnitudes) -> dict[str, float]:
    """How far magnitudes are from the true ones.

    Returns:
        heard: mean difference of log-mel cells, dB, over those at most 60 dB below the loudest of the clip.
        cells: the same over all cells, silence included (the logarithm has its floor at -100 dB).
        convergence: `|found - true| / |true|`, Frobenius norms.
        snr: the same in dB: `-20 log10 convergence`.
    """
    decibels = 20.0 / log(10.0)
    bank = front.filterbank
    mels = [log_amplitude(each @ bank.T) * decibels for each in (true, found)]
    apart = (mels[1] - mels[0]).abs()
    convergence = float(torch.linalg.norm(found - true) / torch.linalg.norm(true).clamp(min=1e-12))
    return {
        "heard": float(apart[mels[0] >= mels[0].max() - LOUD].mean()),
        "cells": float(apart.mean()),
        "convergence": convergence,
        "snr": -20.0 * log10(max(convergence, 1e-12)),
    }


def as_model_hears(sound: Recording, front: MelFrontEnd, seconds: float) -> Wave:
    """The first channel at the model's rate, centred, its peak at 0.5; no longer than `seconds`."""
    first = as_heard(excerpt(sound.clip, seconds), channels=1, channel="first")
    return peak_normalised(resample(first, sound.clip.sampling_rate, front.sampling_rate))[0]


def chosen(sounds: Iterable[Recording], most: int) -> Iterator[Recording]:
    """At most so many of every kind, evenly spread over its files or voices."""
    groups: dict[str, list[Recording]] = defaultdict(list)
    for sound in sounds:
        groups[sound.kind].append(sound)
    for group in groups.values():
        pace = max(1, -(-len(group) // most))
        yield from group[::pace]


@torch.no_grad()
def measured(
    sounds: Iterable[Recording], front: MelFrontEnd, codec: MelCodec | None, *, seconds: float, steps: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Figures of every recording, by way and kind."""
    found: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    back = ways(front, steps=steps) | ({} if codec is None else ways_of_model(codec))
    for number, sound in enumerate(sounds):
        wave = as_model_hears(sound, front, seconds)
        true = front.magnitudes(wave[None])[0]
        for way, returned in back.items():
            found[way][sound.kind].append(figures(front, true, returned(wave, number)))
    return found


def write_sounds(
    sounds: Iterable[Recording], front: MelFrontEnd, folder: Path, *, seconds: float, steps: int
) -> list[Path]:
    """The first recording of every kind and what comes back of its mel bands, as files to listen to."""
    first: dict[str, Recording] = {}
    for sound in sounds:
        first.setdefault(sound.kind, sound)
    written = []
    for kind, sound in first.items():
        wave = as_model_hears(sound, front, seconds)
        magnitudes = magnitudes_of_mel(front.log_mel(wave[None])[0], front.filterbank)
        back = griffin_lim(magnitudes, front, len(wave), seed=0, steps=steps)
        for name, samples in (("recording", wave), ("both", back)):
            data = encode_audio(samples[None], front.sampling_rate, container="wav")
            written.append(atomic_write(folder / f"{kind.replace(' ', '_')}-{name}.wav", data))
    return written


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Medians over the recordings of a kind, one row per kind and way, all kinds together at the end."""
    lines = [
        "| kind of sound | recordings | way back | log-mel distance, heard, dB | all cells, dB "
        "| spectral convergence | SNR of magnitudes, dB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    kinds = list(next(iter(found.values())))
    for kind in [*kinds, "all"]:
        for way, groups in found.items():
            values = groups[kind] if kind != "all" else list(chain.from_iterable(groups.values()))
            middle = {name: statistics.median(value[name] for value in values) for name in values[0]}
            lines.append(
                f"| {kind} | {len(values)} | {way} | {middle['heard']:.2f} | {middle['cells']:.2f} "
                f"| {middle['convergence']:.3f} | {middle['snr']:.1f} |"
            )
    return "\n".join(lines)


def renew(page: Path, content: str) -> None:
    """Put the table between the page's markers."""
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(MARKERS[0])
    _, ended, after = rest.partition(MARKERS[1])
    if not found or not ended:
        message = f"{page}: got no {' and '.join(MARKERS)}, between which the table stands"
        raise ValueError(message)
    atomic_write(page, f"{before}{MARKERS[0]}\n{content}\n{MARKERS[1]}{after}")


def _codec(folder: str, seconds: float) -> MelCodec:
    from mmalign.audio.families.tango import FAMILY
    from mmalign.train.audio_sections import AudioConfig
    from mmalign.train.sections import ModelConfig

    settings = ModelConfig(source=folder, family="tango")
    model = FAMILY.load(settings, AudioConfig(duration=seconds), device="cpu", dtype=torch.float32)
    return model.autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", type=Source.parse, metavar="KIND=FOLDER[/PATTERN]")
    parser.add_argument("--speech", action="store_true", help=f"add {SPEECH}: espeak-ng, flite, if installed")
    parser.add_argument("--model", help="a Tango (folder or hub id), to go through its vocoder and its VAE")
    parser.add_argument("--seconds", type=float, default=5.12, help="of each recording (default: 5.12)")
    parser.add_argument("--most", type=int, default=12, help="recordings of a kind (default: 12)")
    parser.add_argument("--steps", type=int, default=64, help="of Griffin-Lim (default: 64)")
    parser.add_argument("--page", type=Path, help="file between whose markers the table is written")
    parser.add_argument("--listen", type=Path, help="folder for one recording of a kind and what comes back")
    options = parser.parse_args()
    codec = None if options.model is None else _codec(options.model, options.seconds)
    front = MelFrontEnd() if codec is None else codec.front
    refused: Counter[str] = Counter()
    sounds = chain(recordings(options.sources, refused), speech() if options.speech else ())
    picked = list(chosen(sounds, options.most))
    found = measured(picked, front, codec, seconds=options.seconds, steps=options.steps)
    if not found:
        parser.error("no recording was found: name folders that hold some, or install a synthesiser")
    if options.listen is not None:
        options.listen.mkdir(parents=True, exist_ok=True)
        write_sounds(picked, front, options.listen, seconds=options.seconds, steps=options.steps)
    content = table(found)
    print(content)
    if options.page is not None:
        renew(options.page, content)


if __name__ == "__main__":
    main()
