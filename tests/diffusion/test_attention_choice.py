"""`model.attention: auto`: torch's own choice on the CPU, on a GPU the fastest verified kernel, and why."""

from typing import Any

import pytest
import torch
from torch import nn

from mmalign.diffusion import attention_choice
from mmalign.diffusion.attention import apply_attention
from mmalign.diffusion.attention_choice import choose_backend, head_size_of
from mmalign.errors import ConfigError
from mmalign.train.config import ModelConfig
from mmalign.train.verified_attention import AttentionUse, Trial

GPU = torch.device("cuda")  # named only: trials are given


def network(processor: Any) -> nn.Module:
    from diffusers.models.attention_processor import Attention

    made = nn.Module()
    made.layers = nn.ModuleList(
        Attention(24, heads=3, dim_head=size, processor=processor) for size in (8, 16)
    )
    made.attn_processors = {str(place): layer.processor for place, layer in enumerate(made.layers)}

    def replaced(other: Any) -> None:
        made.attn_processors = dict.fromkeys(made.attn_processors, other)

    made.set_attn_processor = replaced
    return made


def chosen(monkeypatch: pytest.MonkeyPatch, trials: dict[str, Trial], **options: Any) -> tuple[str, str]:
    """What is chosen when kernels do so; which were tried must be these."""
    tried = []

    def given(name: str, kernel: Any, use: AttentionUse) -> Trial:
        assert (use.dtype, use.head_size) == (torch.bfloat16, 16)
        tried.append(name)
        return trials[name]

    monkeypatch.setattr(attention_choice, "try_kernel", given)
    settings = {"device": GPU, "dtype": torch.bfloat16, "is_dispatched": False} | options
    found = choose_backend(network(None), **settings)
    assert tried == list(trials)
    return found


def test_it_is_the_default() -> None:
    assert ModelConfig(family="sdxl", source="somewhere").attention == "auto"


def test_on_the_cpu_it_is_sdpa_and_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {}, device=torch.device("cpu")) == ("sdpa", "auto, on cpu")


def test_on_the_cpu_the_processors_are_those_of_sdpa() -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    reports = [
        apply_attention(network(AttnProcessor2_0()), backend, device="cpu", dtype=torch.float32)
        for backend in ("auto", "sdpa")
    ]
    assert reports[0].processors == reports[1].processors == {"AttnProcessor2_0": 2}
    assert [report.requested for report in reports] == ["auto", "sdpa"]
    assert reports[0].detail == f"{reports[1].detail}; auto, on cpu"


def test_the_fastest_is_taken_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, why = chosen(monkeypatch, {"sdpa": Trial("sdpa", 1.0), "flash": Trial("flash", 0.5)})
    assert backend == "flash"
    expected = "auto, fastest of those verified: sdpa 1.00 ms, flash 0.50 ms"
    assert why == f"{expected} (cuda, bfloat16, heads of 16, 1024 tokens)"


def test_a_kernel_that_is_refused_is_named_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {"sdpa": Trial("sdpa", 1.0), "flash": Trial("flash", refusal="does not run here (old card)")}
    backend, why = chosen(monkeypatch, trials)
    assert backend == "sdpa"
    assert "flash does not run here (old card)" in why


def test_networks_that_may_mask_leave_the_kernel_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {"sdpa": Trial("sdpa", 1.0)}, is_dispatched=True)[0] == "sdpa"


def test_without_a_verified_kernel_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        name: Trial(name, refusal="is off by 0.3 from float32, more than 0.05") for name in ("sdpa", "flash")
    }
    with pytest.raises(ConfigError, match=r"model.attention auto: got .*sdpa is off by 0.3.*flash is off"):
        chosen(monkeypatch, wrong)


def test_the_largest_head_counts_and_networks_without_attention_have_a_default() -> None:
    assert head_size_of(network(None)) == 16
    assert head_size_of(nn.Linear(3, 5)) == 64


def test_flex_is_for_language_models() -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    with pytest.raises(
        ConfigError, match=r"got 'flex', expected auto, sdpa, flash or xformers.*language models"
    ):
        apply_attention(network(AttnProcessor2_0()), "flex", device="cpu", dtype=torch.float32)
