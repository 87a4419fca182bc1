"""Trainers that take the same DPO step of a vision-language model, and the check that they do."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

BETA, RANK, LEARNING_RATE = 0.1, 16, 1e-5
PAIRS = 2
TOLERANCE = 1e-4
LAYERS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


@dataclass(frozen=True)
class Contestant:
    """A trainer, ready for its steps.

    Args:
        name: in tables.
        parameters: the adapter's weights, by their names within the language model.
        gradient: leaves the gradient of one micro-batch in them.
        step: one optimiser step.
        repeated: FLOPs of the forward pass that checkpointing takes twice; None where nothing counts them.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    gradient: Callable[[], None]
    step: Callable[[], None]
    repeated: Callable[[], int] | None = None


def _by_layer(network: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.split("language_model.")[-1]: parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def policy_flops(loop: Any, batch: Any) -> int:
    """FLOPs of the policy's forward pass: half of a step's two without gradients, where nothing is repeated.

    Args:
        loop: with a live reference, which is the same network with its adapters off.
        batch: encoded.
    """
    from inside_a_step import flops_of

    from mmalign.train.step import preference_step

    with torch.no_grad():
        return flops_of(lambda: preference_step(loop.parts, batch)) // 2


def mmalign_contestant(
    folder: Path, *, stored: bool, checkpointing: bool, train: Mapping[str, Any] | None = None
) -> Contestant:
    """Our trainer, as `mmalign train` builds it; `train` is laid over that section."""
    from mmalign.train.config import resolve
    from mmalign.train.run import prepare
    from mmalign.train.step import preference_step

    name = "mmalign, stored" if stored else "mmalign"
    run = resolve(
        {
            "method": "dpo",
            "model": {
                "family": "llava",
                "source": str(folder / "model"),
                "gradient_checkpointing": checkpointing,
            },
            "data": {"source": str(folder / "pairs.parquet"), "shuffle": False},
            "objective": {"beta": BETA},
            "reference": {"kind": "stored" if stored else "adapters_off"},
            "adapter": {"rank": RANK},
            "train": {
                "output": str(folder / f"{name}, {checkpointing}"),
                "steps": 10**6,
                "batch_size": PAIRS,
                "learning_rate": LEARNING_RATE,
                "optimizer": "adamw",
                "schedule": "constant",
                "warmup_steps": 0,
                "num_workers": 0,
                "device": "cpu",
                **(train or {}),
            },
            "log": {"every": 10, "trackers": []},
        }
    )
    loop, loader = prepare(run)
    batches = loop._batches(itertools.repeat(next(iter(loader))))

    def gradient() -> None:
        (preference_step(loop.parts, next(batches)).loss / PAIRS).backward()

    def step() -> None:
        is_record = (loop.progress.step + 1) % run.config.log.every == 0
        loop._update(batches, is_record=is_record)
        loop.progress.step += 1
        if is_record:
            loop.meter.read(lambda sums: sums)

    def repeated() -> int:
        return policy_flops(loop, next(batches))

    return Contestant(
        name, _by_layer(loop.trainables.network), gradient, step, repeated if checkpointing else None
    )


def trl_contestant(
    folder: Path, *, answers_alone: bool, checkpointing: bool, bf16: bool = False, on_cpu: bool = True
) -> Contestant:
    """TRL's trainer with its own collator; what its loop does after the gradient is spelled out."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    name = "trl, answers alone" if answers_alone else "trl, all positions"
    settings = DPOConfig(
        output_dir=str(folder / f"{name}, {checkpointing}"),
        beta=BETA,
        per_device_train_batch_size=PAIRS,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        lr_scheduler_type="constant",
        max_length=None,
        bf16=bf16,
        # Frozen weights as ours has them; TRL's own choice is float32, twice the memory.
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
        gradient_checkpointing=checkpointing,
        use_cpu=on_cpu,
        report_to=[],
    )
    rows = Dataset.from_parquet(str(folder / "pairs.parquet"), cache_dir=str(folder / "rows"))
    trainer = DPOTrainer(
        str(folder / "model"),
        args=settings,
        train_dataset=rows,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=rf".*language_model.*\.({LAYERS})"
        ),
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10**6)
    trainer.current_gradient_accumulation_steps = 1
    model: Any = trainer.model
    inputs = trainer.data_collator([rows[row] for row in range(PAIRS)])
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradient() -> None:
        # The fused head asks whether it may choose positions, and then does so without its Triton kernel.
        with mock.patch("trl.trainer.utils._use_triton", return_value=answers_alone):
            trainer.training_step(model, dict(inputs))

    def step() -> None:
        gradient()
        trainer.accelerator.clip_grad_norm_(weights, settings.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    return Contestant(name, _by_layer(model), gradient, step)


MAKERS: dict[str, Callable[..., Contestant]] = {
    "trl, all positions": lambda *args, **kwargs: trl_contestant(*args, answers_alone=False, **kwargs),
    "trl, answers alone": lambda *args, **kwargs: trl_contestant(*args, answers_alone=True, **kwargs),
    "mmalign": lambda *args, **kwargs: mmalign_contestant(*args, stored=False, **kwargs),
    "mmalign, stored": lambda *args, **kwargs: mmalign_contestant(*args, stored=True, **kwargs),
}


# --- equal gradients ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _moved(contestant: Contestant) -> Iterator[None]:
    """The adapter away from its start, where half of its gradients are zero; then back."""
    kept = {name: parameter.detach().clone() for name, parameter in contestant.parameters.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(contestant.parameters.items()):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in contestant.parameters.items():
                parameter.copy_(kept[name])
                parameter.grad = None


def gradients_of(contestant: Contestant) -> dict[str, Tensor]:
    """Gradient of every adapter weight at a fixed place, by name."""
    with _moved(contestant):
        contestant.gradient()
        found = {}
        for name, parameter in contestant.parameters.items():
            if parameter.grad is None:
                message = f"{contestant.name}: no gradient in {name}"
                raise RuntimeError(message)
            found[name] = parameter.grad.clone()
    return found


def largest_difference(contestants: list[Contestant], tolerance: float = TOLERANCE) -> float:
    """Of any contestant's gradient from the first one's, |a - b| / |b| over all weights.

    Args:
        contestants: to compare.
        tolerance: a larger difference is refused.

    Raises:
        RuntimeError: they do not train the same weights, or do not compute the same gradient.
    """
    first, *others = [gradients_of(contestant) for contestant in contestants]
    largest = 0.0
    for contestant, found in zip(contestants[1:], others, strict=True):
        if found.keys() != first.keys():
            message = f"{contestant.name} trains other weights: {sorted(found.keys() ^ first.keys())[:4]}"
            raise RuntimeError(message)
        gap = sum(float((found[name] - first[name]).square().sum()) for name in first)
        size = sum(float(value.square().sum()) for value in first.values())
        difference = (gap / size) ** 0.5
        if not difference <= tolerance:
            message = f"{contestant.name} differs from {contestants[0].name} by {difference:.1e}"
            raise RuntimeError(message)
        largest = max(largest, difference)
    return largest
