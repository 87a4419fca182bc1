"""MPS: the whole forward against a second writing, one sample at a time, and what its loading refuses."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError
from mmalign.rewards import Sample
from mmalign.rewards.conditioned_preference import OVERALL_CONDITION
from mmalign.rewards.preference_attention import CrossModel, condition_mask, relative_similarity, similarity
from mmalign.testing.reward_checkpoints.step_aware import write_mps
from mmalign.testing.straight_line import clip_text, clip_vision, heads_attend, linear, norm

HEADS, WIDTH = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mps(tmp_path_factory.mktemp("mps"), 2)


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.load("mps", weights=folder)


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    prompts = ("a painting of an ocean", "light and color", "", "birds " * 90)
    return [Sample(prompt=p, image=torch.rand(3, 28, 28, generator=generator)) for p in prompts]


def straight(folder, reward, sample, *, threshold=0.3, condition=OVERALL_CONDITION):
    """One score by formulas alone."""
    state = {
        name.removeprefix("mps."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    clip = {n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")}
    tower = {n.removeprefix("cross_model."): v for n, v in state.items() if n.startswith("cross_model.")}
    tokenizer = reward.tokens.tokenizer

    def text(prompt):
        row = tokenizer(prompt, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        hidden = clip_text(clip, row.input_ids, heads=3, layers=2)
        end = (row.input_ids[0] == tokenizer.eos_token_id).int().argmax()
        projected = hidden @ clip["text_projection.weight"].T
        return projected[0], projected[0, end]

    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    pixels = (((sample.image * 255).round() / 255 - mean) / std)[None]
    x = clip_vision(clip, pixels, heads=4, layers=2, patch=7)[0] @ clip["visual_projection.weight"].T
    context, pooled = text(sample.prompt)
    nearest = (context @ text(condition)[0].T).max(dim=1).values
    hidden = torch.where(nearest / nearest.max() > threshold, 0.0, -torch.inf)
    for layer in range(2):
        cross, block = f"layers.{layer}.0.fn", f"layers.{layer}.1.fn"
        given = norm(tower, f"{cross}.norm", x)
        key, value = linear(tower, f"{cross}.to_kv", context).split(WIDTH, dim=-1)
        query = linear(tower, f"{cross}.to_q", given)
        seen = heads_attend(query, key.repeat(1, HEADS), value.repeat(1, HEADS), HEADS, hidden)
        first, gate = linear(tower, f"{cross}.ff.0", given).chunk(2, dim=-1)
        x = x + linear(tower, f"{cross}.to_out", seen) + linear(tower, f"{cross}.ff.2", F.silu(gate) * first)
        given = norm(tower, f"{block}.norm", x)
        fused = linear(tower, f"{block}.fused_attn_ff_proj", given)
        query, key, value, inner = fused.split([HEADS * WIDTH, WIDTH, WIDTH, fused.shape[1] - 20], dim=-1)
        query = torch.cat([turned(part) for part in query.split(WIDTH, dim=-1)], dim=-1)
        seen = heads_attend(query, turned(key).repeat(1, HEADS), value.repeat(1, HEADS), HEADS)
        first, gate = inner.chunk(2, dim=-1)
        x = x + linear(tower, f"{block}.attn_out", seen)
        x = x + linear(tower, f"{block}.ff_out.1", F.silu(gate) * first)
    cosine = x[0] @ pooled / x[0].norm() / pooled.norm()
    return (clip["logit_scale"].exp() * cosine).double()


def turned(x):
    """Rotary positions as complex numbers: pair (i, i + half) turns by position * 10000^(-2i / width)."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) * 2 / x.shape[-1])
    found = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([found.real, found.imag], dim=-1)


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.01}, {"threshold": 0.9, "condition": "light, color"}], ids=str
)
def test_the_whole_forward_equals_a_second_writing(folder, samples, options):
    loaded = rewards.load("mps", weights=folder, **options)
    expected = torch.stack([straight(folder, loaded, sample, **options) for sample in samples])
    found = loaded.score(samples)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.first(), expected, rtol=1e-4, atol=1e-4)
    assert found.truncated == (False, False, False, True)


def test_scores_do_not_depend_on_batch_mates(reward, samples):
    alone = torch.cat([reward.score([sample]).first() for sample in samples])
    for size in (2, 3):
        torch.testing.assert_close(
            reward.score(samples, batch_size=size).first(), alone, rtol=1e-5, atol=1e-5
        )


def test_the_batch_maximum_would_make_them_depend(draw):
    # What the official training code does: the reason why the default divides by each sample's own maximum.
    text, condition = draw(3, 5, 7), draw(2, 7)
    own, over_batch = (
        relative_similarity(text, condition, maximum_over=over) for over in ("sample", "batch")
    )
    alone = torch.cat([relative_similarity(row[None], condition, maximum_over="batch") for row in text])
    assert torch.equal(own, alone)
    assert own.amax(dim=1).eq(1.0).all()
    assert over_batch.amax(dim=1).lt(1.0).sum() == 2


def test_the_threshold_decides_which_tokens_are_seen(folder, samples):
    many, few = (
        rewards.load("mps", weights=folder, threshold=value).score(samples).first() for value in (0.3, 0.9)
    )
    assert (many - few).abs().min() > 1e-4


def test_padding_takes_part(reward, samples):
    # The same prompt at another padded length is another score.
    row = reward.tokens.encode(samples[0].prompt)
    count = int(row.mask.sum())
    pixels = reward.preprocessing.tensor(samples[0].image[None])
    full, short = (reward.run(pixels, row.ids[None, :end], row.mask[None, :end]) for end in (77, count))
    assert abs(float(full - short)) > 1e-4


def test_similarity_is_the_best_token_of_the_condition(draw):
    text, condition = draw(2, 3, 5), draw(7, 5)
    expected = torch.tensor([[max(float(t @ c) for c in condition) for t in row] for row in text])
    torch.testing.assert_close(similarity(text, condition), expected.double(), rtol=1e-6, atol=1e-6)


def test_the_nearest_token_is_always_kept(draw):
    text, condition = draw(5, 3, 7), draw(2, 7)
    keep = condition_mask(text, condition, threshold=0.999)
    nearest = similarity(text, condition).argmax(dim=1)
    assert keep[torch.arange(5), nearest].all()


def test_hidden_tokens_play_no_part(draw):
    tower = CrossModel(dim=6, layers=2, heads=2, dim_head=4, ff_mult=2).double()
    image, text = draw(2, 5, 6), draw(2, 3, 6)
    keep = torch.tensor([[True, False, True], [False, True, True]])
    changed = torch.where(keep[..., None], text, text + 100.0)
    torch.testing.assert_close(tower(image, text, keep), tower(image, changed, keep))


def test_the_tensor_path_carries_a_gradient(reward, samples):
    pixels = samples[0].image[None].clone().requires_grad_()
    reward.score_tensor(pixels, ["light"]).sum().backward()
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad.abs().max() > 0


def test_half_precision_scores_are_not_rounded_to_half_precision(folder, samples):
    values = rewards.load("mps", weights=folder, dtype="bfloat16").score(samples).first()
    assert not torch.equal(values, values.to(torch.bfloat16).double())


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_thresholds_that_keep_nothing_are_refused(folder, threshold):
    with pytest.raises(ConfigError, match=r"option threshold: got .*, expected 0 <= threshold < 1"):
        rewards.load("mps", weights=folder, threshold=threshold)


def test_a_condition_that_does_not_fit_is_refused(folder):
    with pytest.raises(ConfigError, match=r"option condition: .*expected at most 77 tokens"):
        rewards.load("mps", weights=folder, condition="light, " * 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("mps.cross_model.layers.1.1.fn.attn_out.weight"),
            r"missing: cross_model\.layers\.1\.1",
        ),
        (lambda s: s.pop("mps.model.visual_projection.weight"), r"missing: model\.visual_projection"),
        (
            lambda s: s.pop("mps.cross_model.layers.0.0.fn.to_q.weight"),
            r"got \[no key cross_model\.layers\.0",
        ),
        (lambda s: s.update({"mps.head.weight": torch.ones(1)}), r"unexpected: head\.weight"),
        (lambda s: s["mps.cross_model.layers.0.0.fn.norm.bias"].add_(0.1), r"other values in .*norm\.bias"),
        (
            lambda s: s["mps.cross_model.layers.0.1.fn.rotary_emb.inv_freq"].mul_(2),
            r"other values in .*inv_freq",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = write_mps(tmp_path)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        rewards.load("mps", weights=folder)
