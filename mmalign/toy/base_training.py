"""What the training of toy base models shares: the rate of learning, averaged weights, lines of a log."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.files import load_tensors, save_tensors
from mmalign.seeding import generator_for

__all__ = ["Trained", "cosine_share", "log_line", "train_denoiser_of", "training_folder"]


def cosine_share(step: int, steps: int, *, warmup: int) -> float:
    """The learning rate's share of its peak: linear warm-up, then a half cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.49 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def log_line(stage: str, **values: float | int) -> None:
    """Print a JSON line."""
    print(
        json.dumps({"stage": stage} | {key: round(float(value), 5) for key, value in values.items()}),
        flush=True,
    )


class Trained:
    """Parameters with their optimizer and their moving average; saved and restored as one file."""

    def __init__(
        self, modules: Sequence[nn.Module], *, learning_rate: float, decay: float, warmup: int = 100
    ) -> None:
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.values: list[Tensor] = [
            parameter.detach() for parameter in self.parameters
        ]  # share their memory
        self.shadow = [value.clone() for value in self.values]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self.learning_rate, self.decay, self.warmup = learning_rate, decay, warmup

    def update(self, loss: Float[Tensor, ""], *, step: int, steps: int) -> None:
        """One optimizer step (the first is step 1) and one step of the average, whose decay warms up."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * cosine_share(step - 1, steps, warmup=self.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.shadow, self.values, 1.0 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged values inside, the trained ones after."""
        trained = [value.clone() for value in self.values]
        torch._foreach_copy_(self.values, self.shadow)
        yield
        torch._foreach_copy_(self.values, trained)

    def save(self, path: Path, step: int) -> None:
        """Write everything that the next step depends on."""
        tensors = {"step": torch.tensor(step)}
        for index, (parameter, shadow) in enumerate(zip(self.parameters, self.shadow, strict=True)):
            moments = self.optimizer.state.get(parameter, {})  # none where no gradient arrives
            named = {"value": parameter.detach(), "shadow": shadow, **moments}
            tensors |= {f"{index}.{name}": value.contiguous() for name, value in named.items()}
        save_tensors(path, tensors)

    @torch.no_grad()
    def load(self, path: Path) -> int:
        """Restore what `save` wrote; returns the step after which it was written."""
        tensors = load_tensors(path)
        for index, (value, shadow) in enumerate(zip(self.values, self.shadow, strict=True)):
            value.copy_(tensors.pop(f"{index}.value"))
            shadow.copy_(tensors.pop(f"{index}.shadow"))
        step = int(tensors.pop("step"))
        for name, moment in tensors.items():
            number, kind = name.split(".")
            self.optimizer.state[self.parameters[int(number)]][kind] = moment
        return step


def training_folder(output: Path) -> Path:
    """Where the state of training lies until the model in `output` is done: beside it."""
    return output.with_name(f"{output.name}.training")


def train_denoiser_of(
    trained: Trained,
    loss_of: Callable[[Int[Tensor, " row"], torch.Generator], Float[Tensor, ""]],
    keep: Callable[[], Mapping[str, float]],
    output: Path,
    *,
    num_rows: int,
    seed: int,
    steps: int,
    batch_size: int,
    save_every: int,
) -> None:
    """Train a denoiser in place, on the averaged weights in the end.

    Every `save_every` steps the averaged weights are kept and judged, and the state of training is written to
    `training_folder(output)`. Where that state exists, training continues from there, with the same draws as
    if it had never stopped.

    Args:
        trained: its parameters.
        loss_of: of rows of the data, with the generator of a step.
        keep: writes the model as it stands and says how it does on held-out captions.
        output: folder of the model.
        num_rows: of the data.
        seed: of all draws.
        steps: in all.
        batch_size: rows per step.
        save_every: steps.
    """
    state = training_folder(output) / "denoiser.safetensors"
    first = trained.load(state) + 1 if state.exists() else 1
    started, running = time.time(), 0.0
    for step in range(first, steps + 1):
        generator = generator_for(seed, "denoiser", step)
        rows = torch.randint(0, num_rows, (batch_size,), generator=generator)
        loss = loss_of(rows, generator)
        trained.update(loss, step=step, steps=steps)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            log_line("denoiser", step=step, loss=running, seconds=time.time() - started)
        if step % save_every == 0 or step == steps:
            trained.save(state, step)
            with trained.averaged():
                log_line("held out", step=step, **keep())
    torch._foreach_copy_(trained.values, trained.shadow)
