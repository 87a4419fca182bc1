"""Split backward passes: the gradient of the whole, for every objective, at a part's activations."""

import contextlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmalign import objectives
from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.errors import ConfigError
from mmalign.likelihood import Elbo, FlowSchedule, UniformTimesteps
from mmalign.likelihood.reference import AdaptersOff, NoReference
from mmalign.objectives import ObjectiveState
from mmalign.testing.objective_examples import candidates_of
from mmalign.train.micro_batch import to_batch
from mmalign.train.run import prepare
from mmalign.train.split_backward import SplitBackward, cells_of
from mmalign.train.step import StepOutput, StepParts, preference_step
from mmalign.train.supply import IN_TIME, RECORDED, SUPPLIED, Safeguard, Supply

PROMPTS = 3
EVENT = (2, 5)  # channels, latent frames


class Network(nn.Module):
    """A small denoiser whose rows do not see each other; adapters are the second layer."""

    def __init__(self, *, dropout: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first = nn.Parameter(torch.randn(10, 11, generator=generator, dtype=torch.float64) / 3)
        self.second = nn.Parameter(torch.randn(11, 10, generator=generator, dtype=torch.float64) / 3)
        self.dropout, self.checkpointed = nn.Dropout(dropout), checkpointed
        self.rows: list[int] = []
        self.adapters = True

    def forward(self, noised: Tensor, timestep: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            self.rows.append(len(noised))

        def inner(x: Tensor) -> Tensor:
            hidden = torch.tanh(x @ self.first + timestep[:, None])
            return self.dropout(hidden) @ self.second * float(self.adapters)

        x = noised.flatten(1).to(torch.float64)
        found = checkpoint(inner, x, use_reentrant=False) if self.checkpointed else inner(x)
        return (found + conditioning["text"][:, None] + conditioning["size"][:, None]).view(noised.shape)

    @contextlib.contextmanager
    def off(self):
        self.adapters = False
        yield
        self.adapters = True


CANDIDATES = {"pairs": 2, "lists": 4, "chosen": 1, "unpaired": 1, "prompts": 1}


def batch_of(data: str, candidates: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(3)
    candidates = candidates or CANDIDATES[data]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = {
        "pairs": Labels(probability=torch.tensor([1.0, 0.8, 1.0])),
        "lists": Labels(relevance=draw(PROMPTS, candidates)),
        "unpaired": Labels.unpaired(torch.tensor([True, False, True])),
    }.get(data, Labels())
    preference = torch.tensor([[1.0, 0, -1, 1, 1], [0, 0, 1, -1, -1], [1, 1, 1, 0, -1]], dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)[:candidates]
    return Batch(
        clean=draw(PROMPTS, candidates, *EVENT),
        conditioning=Conditioning({"text": draw(PROMPTS)}, {"size": draw(PROMPTS, candidates)}),
        labels=labels,
        weight=torch.tensor([1.0, 0.5, 2.0]),
        valid=torch.tensor([True, True, False]) if data == "lists" else torch.ones(3, dtype=torch.bool),
        keys=RowKeys(torch.arange(PROMPTS), torch.zeros(PROMPTS), PROMPTS),
        reward=draw(PROMPTS, candidates).sort(1, descending=True).values,
        recorded={
            "preference": preference[:, None] * signs[None, :, None],
            "pair_weight": draw(PROMPTS, candidates).abs(),
        },
    )


def suitable() -> list[str]:
    """The objectives of the catalogue that a run on denoising errors can have."""
    supplied = (SUPPLIED - RECORDED) | IN_TIME
    rows = {name: objectives.row(name) for name in objectives.names()}
    return [name for name, row in rows.items() if "elbo" not in row.refuses and row.needs <= supplied]


def parts_of(name: str, network: Network, split: SplitBackward | None = None) -> tuple[StepParts, str]:
    registered = objectives.registered(name)
    objective = objectives.build(name, **registered.sample)
    in_time = bool(objective.needs & IN_TIME & {"preference"})
    likelihood = Elbo(FlowSchedule(), "flow", UniformTimesteps(), inner_axis=1 if in_time else None)
    parts = StepParts(
        denoise=network,
        likelihood=likelihood,
        reference=AdaptersOff(network, network.off) if "reference" in objective.needs else NoReference(),
        objective=objective,
        state=ObjectiveState(),
        autocast=contextlib.nullcontext,
        supply=Supply(objective.needs, Safeguard(0.5)),
        split=split,
    )
    return parts, registered.row.data


def gradients(
    name: str, split: SplitBackward | None, *, steps: int = 2, **network: object
) -> tuple[list[Tensor], list[StepOutput], Network, dict[str, Tensor]]:
    """Gradients accumulated over micro-steps, under one state of the objective."""
    policy = Network(**network)
    parts, data = parts_of(name, policy, split)
    torch.manual_seed(5)
    outputs = []
    for _ in range(steps):
        outputs.append(preference_step(parts, batch_of(data, candidates_of(objectives.registered(name)))))
        outputs[-1].backward()
    return [policy.first.grad, policy.second.grad], outputs, policy, parts.state.state_dict()


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("name", suitable())
def test_the_gradient_of_every_objective_is_that_of_the_whole(name) -> None:
    expected, whole, network, state = gradients(name, None)
    assert max(float(value.abs().max()) for value in expected) > 0
    row = objectives.row(name)
    for size in (2, None) if row.couples_rows or row.data != "pairs" else (2,):
        found, outputs, split, after = gradients(name, SplitBackward(size))
        assert_close(found, expected)
        assert max(split.rows) <= max(size or PROMPTS, 1)
        for one, other in zip(outputs, whole, strict=True):
            assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-12, abs=1e-12)
            assert torch.equal(one.num_valid, other.num_valid)
        # Running statistics move once per micro-step, as in one pass.
        assert after.keys() == state.keys()
        assert_close(list(after.values()), list(state.values()))
    assert max(network.rows) == candidates_of(objectives.registered(name)) * PROMPTS


def test_parts_cover_every_candidate_once_and_are_no_larger_than_asked() -> None:
    for prompts, candidates, size in [(3, 2, 3), (3, 2, 1), (3, 2, 2), (1, 7, 3), (2, 5, 4), (5, 3, 100)]:
        seen = torch.zeros(prompts, candidates)
        for cell in cells_of(prompts, candidates, size):
            seen[cell] += 1
            assert 0 < seen[cell].numel() <= size
        assert bool((seen == 1).all())


def test_a_pair_has_the_activations_of_one_side_and_one_forward_pass_more() -> None:
    _, _, whole, _ = gradients("dpo", None, steps=1)
    _, _, split, _ = gradients("dpo", SplitBackward(), steps=1)
    assert (whole.rows, split.rows) == ([6], [3, 3])


def test_a_batch_of_one_part_is_not_split() -> None:
    parts, _ = parts_of("sft", Network(), SplitBackward())
    output = preference_step(parts, batch_of("chosen"))
    assert output.parts == ()
    assert output.loss.requires_grad


def test_dropout_is_the_same_in_scores_and_gradients() -> None:
    seen: list[Tensor] = []
    network = Network(dropout=0.5)
    network.dropout.register_forward_hook(lambda *given: seen.append(given[2].detach().clone()))
    parts, _ = parts_of("simpo", network, SplitBackward())
    torch.manual_seed(11)
    output = preference_step(parts, batch_of("pairs"))
    before = torch.get_rng_state()
    output.backward()
    scored, kept, again = seen
    assert torch.equal(scored, again)
    assert not torch.equal(scored == 0, kept == 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpointed_blocks_recompute_with_adapters_on() -> None:
    expected, *_ = gradients("dpo", None)
    found, *_ = gradients("dpo", SplitBackward(), checkpointed=True)
    assert_close(found, expected)


def test_parts_but_the_last_run_where_devices_do_not_exchange_gradients() -> None:
    inside = [False]
    events: list[tuple[str, bool]] = []

    @contextlib.contextmanager
    def unsynced():
        inside[0] = True
        yield
        inside[0] = False

    network = Network()
    parts, _ = parts_of("plackett_luce_dpo", network, SplitBackward(unsynced=unsynced))
    network.register_forward_hook(lambda *_: events.append(("forward", inside[0])))

    def apply(loss: Tensor) -> None:
        events.append(("backward", inside[0]))
        loss.backward()

    output = preference_step(parts, batch_of("lists"))
    output.backward(apply)
    scored = [("forward", False)] * 7  # the reference's four, and three that are scored without gradients
    assert events == [
        *scored,
        *(("forward", True), ("backward", True)),
        *(("forward", True), ("backward", True)) * 2,
        *(("forward", False), ("backward", False)),
    ]


def test_likelihoods_that_do_not_score_candidates_one_by_one_are_refused() -> None:
    class Whole(Elbo):
        kind = "reward"

    parts, _ = parts_of("dpo", Network(), SplitBackward())
    parts = replace(parts, likelihood=Whole(FlowSchedule(), "flow", UniformTimesteps()))
    with pytest.raises(ConfigError, match=r"train.split_backward.*reward"):
        preference_step(parts, batch_of("pairs"))


def test_a_run_splits_as_its_configuration_says_and_trains_as_if_whole(make_run) -> None:
    found = {}
    for split in ({}, {"split_backward": True}, {"split_backward": True, "split_size": 1}):
        loop, loader = prepare(make_run(train=split))
        batch = to_batch(next(iter(loader)), loop.model, torch.device("cpu"))
        output = preference_step(loop.parts, batch, is_record=True)
        output.backward()
        parameters = loop.trainables.parameters
        found[str(split)] = [value.grad.clone() for value in parameters.values()]
        assert torch.equal(output.values["logit"], torch.zeros(2))  # equal to its reference, to the last bit
        assert len(output.parts) == (0 if not split else 2 * batch.num_prompts // split.get("split_size", 2))
    first, *others = found.values()
    for other in others:
        assert_close(other, first, 1e-4)  # float32


def test_settings_that_do_not_go_together_are_refused(make_run) -> None:
    with pytest.raises(ConfigError, match="split_size is the size of the parts"):
        make_run(train={"split_size": 2})


@pytest.mark.slow
def test_a_run_in_parts_ends_where_a_whole_one_does_and_goes_on_where_it_stopped(
    run_to_end, tmp_path
) -> None:
    def weights(name: str, step: int) -> dict[str, Tensor]:
        return load_file(tmp_path / name / "checkpoints" / f"step-{step:08}" / "weights.safetensors")

    split = {"split_backward": True, "accumulation": 2, "ema_decay": 0.9, "adam_epsilon": 1e-2}
    run_to_end("parts", train={**split, "steps": 4})
    run_to_end("whole", train={**split, "split_backward": False, "steps": 4})
    for name, value in weights("parts", 4).items():
        torch.testing.assert_close(value, weights("whole", 4)[name], rtol=0, atol=1e-6)
    # With dropout, in two goes.
    for name, stops in (("once", (4,)), ("twice", (2, 4))):
        for steps in stops:
            run_to_end(name, adapter={"dropout": 0.3}, train={**split, "steps": steps})
    once, twice = weights("once", 4), weights("twice", 4)
    assert all(torch.equal(value, twice[name]) for name, value in once.items())
