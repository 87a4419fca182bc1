"""How the golden cases of audio call the public interface. No formula of the suite stands here."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.audio import mixing
from mmalign.audio.mel import MelFrontEnd, log_amplitude, prepared
from mmalign.batch import Labels
from mmalign.likelihood import Elbo, UniformTimesteps, schedule_from_config
from mmalign.likelihood.weighting import MinSnr, signal_to_noise
from mmalign.testing.parity import Case, adapter_module

IMAGE = adapter_module(Path(__file__).with_name("adapters_image.py"))

Results = dict[str, Any]


# --- the sounds that the cases describe by a formula --------------------------------------------------------


def sines(given: dict[str, Any], sampling_rate: int = 16_000) -> Tensor:
    """A sum of sines that may decay or glide, in float64 until the end."""
    time = torch.arange(given["num_samples"], dtype=torch.float64) / sampling_rate
    parts = given.get("components") or [{"amp": amp, "f0": f0} for amp, f0 in given["amp_f"]]
    total = torch.full_like(time, given.get("dc", 0.0))
    for part in parts:
        cycles = part["f0"] * time + 0.5 * part.get("slope", 0.0) * time.square()
        tone = torch.sin(2 * math.pi * cycles + part.get("phase", 0.0))
        total += part["amp"] * torch.exp(-part.get("decay", 0.0) * time) * tone
    return total.to(torch.float32)


SINE = re.compile(
    r"(?P<amp>[\d.]+)\*(exp\(-(?P<decay>[\d.]+)\*t\)\*)?sin\(2\*pi\*(?P<f0>[\d.]+)\*t(?P<phase>[+-][\d.]+)?\)"
)


def sine(text: str, num_samples: int, sampling_rate: int) -> Tensor:
    """`float32(0.5*sin(2*pi*440*t))`, and sums of such."""
    inside = text.removeprefix("float32(").removesuffix(")")
    parts = [
        {name: float(value) for name, value in found.groupdict().items() if value is not None}
        for found in SINE.finditer(inside)
    ]
    assert not SINE.sub("", inside).strip("+ "), text
    return sines({"num_samples": num_samples, "components": parts}, sampling_rate)


# --- cases --------------------------------------------------------------------------------------------------


def front_end(given: dict[str, Any]) -> MelFrontEnd:
    names = set(MelFrontEnd().config())
    return MelFrontEnd.from_config({name: value for name, value in given.items() if name in names})


def tango_logmel(case: Case) -> Results:
    given = case.hyperparameters
    front, clip = front_end(given), sines(case["waveform"], given["sampling_rate"])
    assert torch.allclose(clip[:8].double(), torch.tensor(case["waveform"]["first_samples"]).double())
    found: Results = {"mel_basis": front.filterbank}
    for name, num_frames in (("", given["target_length"]), ("short_", given["short_target_length"])):
        wave = prepared(clip.unsqueeze(0), front.num_samples(num_frames))
        found[f"{name}normalised_waveform"] = wave
        found[f"{name}log_mel"] = front.log_mel(wave, num_frames=num_frames)
    found["log_mel_frames_0_to_3"] = found["log_mel"][0, :4]
    found["short_log_mel"] = found["short_log_mel"][0]
    magnitudes = front.magnitudes(found["normalised_waveform"])
    (wanted,) = case.outputs["log_magnitude_frame_5"]["shape"]
    found["log_magnitude_frame_5"] = log_amplitude(magnitudes)[0, 5, :wanted]
    return found


def tango_mix_augmentation(case: Case) -> Results:
    given = case.hyperparameters
    rate = given["fs"]
    first, second = (sine(case[name], int(case["num_samples"]), rate) for name in ("sound1", "sound2"))
    return {
        "gain1_max_db": mixing.loudest_level(first, rate),
        "gain2_max_db": mixing.loudest_level(second, rate),
        "mixed": mixing.mix(first, second, sampling_rate=rate, share=given["r"]),
    }


def tango_snr_sft(case: Case) -> Results:
    given = case.hyperparameters
    config, weighting = given["scheduler_config"], MinSnr(given["snr_gamma"], form="epsilon")
    schedule, kind = schedule_from_config(config), config["prediction_type"]
    plain = Elbo(schedule, kind, UniformTimesteps())
    weighted = Elbo(schedule, kind, UniformTimesteps(), weighting=weighting)
    clean, noise, timestep, prediction = (
        case[name].unsqueeze(1) for name in ("latents", "noise", "timesteps", "prediction")
    )
    draw = plain.draw_at(clean, timestep=timestep, noise=noise)
    batch = IMAGE.batch_of(clean, Labels.unpaired(torch.ones(len(clean), dtype=torch.bool)))
    grid = case["snr_grid_timesteps"]
    return {
        "loss": IMAGE.Recorded(weighted, batch, draw).evaluate(prediction).error.mean(),
        "loss_without_snr": IMAGE.Recorded(plain, batch, draw).evaluate(prediction).error.mean(),
        "target": draw.target.squeeze(1),
        "snr_grid": signal_to_noise(schedule, grid),
        "weight_grid": weighting(schedule, grid, space=kind),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "tango_logmel": tango_logmel,
    "tango_mix_augmentation": tango_mix_augmentation,
    "tango_snr_sft": tango_snr_sft,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
