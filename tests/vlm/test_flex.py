"""Packed rows through FlexAttention: the mask's rule, what it saves, and where it is refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from mmalign.errors import ConfigError
from mmalign.train import verified_attention
from mmalign.train.verified_attention import AttentionUse, Trial, fastest, torch_choice, try_kernel
from mmalign.vlm.attention import attend
from mmalign.vlm.flex import block_mask, require_flex, saved_share
from mmalign.vlm.inputs import VlmInputs
from mmalign.vlm.packing import visible

PROMPT, CHOSEN, REJECTED, PADDING = 151, 43, 37, 29
LENGTH = PROMPT + CHOSEN + REJECTED + PADDING


def packed(*, blocks: bool = False) -> VlmInputs:
    """Two rows: one full, one whose second answer and end are padding; pictures that see themselves whole."""
    full = [0] * PROMPT + [1] * CHOSEN + [2] * (REJECTED + PADDING)
    short = [0] * PROMPT + [1] * CHOSEN + [-1] * (REJECTED + PADDING)
    segment = torch.tensor([full, short])
    steps = [*range(PROMPT + CHOSEN), *range(PROMPT, PROMPT + REJECTED + PADDING)]
    picture = torch.full_like(segment, -1)
    picture[:, 5:19] = 0
    nothing = torch.zeros(0, dtype=torch.int64)
    return VlmInputs(
        place=nothing,
        source=nothing,
        ids=torch.zeros_like(segment),
        kinds=torch.zeros_like(segment),
        segment=segment,
        step=torch.tensor([steps, steps]),
        blocks=picture if blocks else None,
        is_packed=True,
        num_causal=PROMPT - 1,
    )


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("window", [None, 23])
def test_the_rule_of_the_blocks_sees_what_the_dense_mask_sees(blocks: bool, window: int | None) -> None:
    inputs = packed(blocks=blocks)
    made = block_mask(inputs, window=window)
    assert tuple(made.shape) == (2, 1, LENGTH, LENGTH)
    dense = create_mask(made.mask_mod, 2, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal(dense, visible(inputs, window=window))


def test_the_rule_is_causal_and_blind_between_answers() -> None:
    made = block_mask(packed())
    dense = create_mask(made.mask_mod, 2, 1, LENGTH, LENGTH, device="cpu")[0, 0]
    query, key = torch.meshgrid(torch.arange(LENGTH), torch.arange(LENGTH), indexing="ij")
    end = PROMPT + CHOSEN
    assert torch.equal(dense, (query >= key) & ~((query >= end) & (key >= PROMPT) & (key < end)))


def test_blocks_save_what_the_docstring_says() -> None:
    for prompt, answers, share in ((8000, 200, 0.001), (4000, 2000, 0.15), (1000, 4000, 0.585)):
        assert saved_share(prompt, answers) == pytest.approx(share, abs=5e-4)


def test_flex_is_refused_where_it_has_no_backward_pass() -> None:
    with pytest.raises(
        ConfigError, match=r"model.attention flex: got .device cpu.*CUDA.*model.attention: auto"
    ):
        require_flex(torch.device("cpu"), torch.float32, 64)


def wrong(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return 1.01 * torch_choice(query, key, value, mask)


def nan(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return torch_choice(query, key, value, mask) * float("nan")


def broken(query: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
    message = "No available kernel. Aborting execution."
    raise RuntimeError(message)


def test_only_kernels_with_the_numbers_of_float32_may_be_chosen() -> None:
    use = AttentionUse(torch.device("cpu"), torch.float32, 8, tokens=19, heads=2)
    good = try_kernel("sdpa", torch_choice, use)
    assert not good.refusal
    assert good.milliseconds > 0
    assert "is off by 0.02" in try_kernel("wrong", wrong, use).refusal
    assert "is off by nan" in try_kernel("nan", nan, use).refusal
    assert "does not run here (No available kernel" in try_kernel("broken", broken, use).refusal


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_says_nothing_of_the_kernel_is_no_refusal(error: type[Exception]) -> None:
    def failing(query: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
        raise error("the device")

    use = AttentionUse(torch.device("cpu"), torch.float32, 8, tokens=19, heads=2)
    with pytest.raises(error, match="the device"):
        try_kernel("failing", failing, use)


def test_float32_may_be_off_by_what_tf32_rounds_where_that_is_on() -> None:
    card = AttentionUse(torch.device("cuda"), torch.float32, 8)  # named only
    before = torch.get_float32_matmul_precision()
    found = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            found[precision] = verified_attention._limit(card)
            assert verified_attention._limit(replace(card, device=torch.device("cpu"))) == 1e-4
            assert verified_attention._limit(replace(card, dtype=torch.bfloat16)) == 0.05
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == {"highest": 1e-4, "high": 0.02}


def test_the_fastest_verified_kernel_is_taken_and_ties_go_to_the_earlier() -> None:
    sdpa, flash = Trial("sdpa", 1.0), Trial("flash", 0.97)
    assert fastest([sdpa, flash]) is sdpa
    quick = Trial("flash", 0.9)
    assert fastest([sdpa, quick]) is quick
    assert fastest([sdpa, Trial("flash", refusal="does not run here")]) is sdpa
    assert fastest([Trial("sdpa", refusal="is off")]) is None


@pytest.mark.compiled
def test_compiled_it_attends_as_the_dense_mask_does() -> None:
    """The forward pass alone: torch has no backward pass of FlexAttention on the CPU."""
    inputs = packed()
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 2, LENGTH, 16, generator=generator) for _ in range(3)]
    layer = torch.nn.Module().eval()
    layer.num_key_value_groups, layer.is_causal = 1, True
    with torch.no_grad():
        found, _ = attend(layer, *states, block_mask(inputs), scaling=0.25)
        dense, _ = attend(layer, *states, visible(inputs), scaling=0.25)
    assert found.shape == (2, LENGTH, 2, 16)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-5)
