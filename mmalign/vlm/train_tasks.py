"""Train task tokens and their heads beside the answers: Task Preference Optimization in a loop of its own.

    loss = loss_mllm + loss_assign + sum over tasks of weight * loss_task

Rows answer with task tokens, and say what the heads are to give, in order:

    {"prompt": "Where is the cup?", "images": ["1.png"], "answer": "Here: <box>.",
     "boxes": [[0.1, 0.2, 0.5, 0.7]]}
    {"prompt": "When does it fall?", "videos": ["1/"], "answer": "At <time>.", "spans": [[0.2, 0.4]]}

LoRA, the heads and the rows of the new tokens train, in one stage; the paper has three (ours). Masks need
features of the image and are not read here; `MaskHead` and `mask_loss` serve loops that have them.

Source: arXiv 2412.19326; training code was never released.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.batch import Candidate, PreferenceRow
from mmalign.errors import RowError, explain
from mmalign.files import read_json_lines, write_json
from mmalign.likelihood import head_log_probs
from mmalign.seeding import derive_seed
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import AdapterConfig
from mmalign.vlm.family import VlmModel
from mmalign.vlm.task_heads import (
    TASK_TOKENS,
    RegionHead,
    SpanHead,
    Task,
    TaskLoss,
    add_task_tokens,
    assignment_loss,
    region_loss,
    span_loss,
    task_states,
    tpo_loss,
)
from mmalign.vlm.trajectories import window_batch

__all__ = ["TaskRow", "TaskTrainer", "main", "read_tasks"]

_COLUMNS: Mapping[Task, tuple[str, int]] = {"region": ("boxes", 4), "temporal": ("spans", 2)}

_LOSSES: Mapping[Task, Callable[[Tensor, Tensor], Tensor]] = {"region": region_loss, "temporal": span_loss}


@dataclass(frozen=True)
class TaskRow:
    """A dialogue, and what the heads are to give at its task tokens.

    Args:
        row: with one candidate, the answer.
        targets: of each task, in the order of its tokens in the answer.
    """

    row: PreferenceRow
    targets: Mapping[Task, Tensor]


def read_tasks(path: Path) -> list[TaskRow]:
    """Rows of a JSON-lines file; paths start beside it.

    Raises:
        RowError: no answer, or another number of boxes or spans than the answer has tokens for them.
    """
    root = path.resolve().parent
    return [
        _task_row(record, f"{path.name}:{number}", number, root)
        for number, record in enumerate(read_json_lines(path), start=1)
    ]


def _task_row(record: Mapping[str, Any], where: str, number: int, root: Path) -> TaskRow:
    answer, prompt = record.get("answer"), record.get("prompt")
    if not isinstance(answer, str) or not isinstance(prompt, str):
        raise RowError(explain(where, got=sorted(record), expected="prompt and answer"), "no_answer")
    targets: dict[Task, Tensor] = {}
    for task, (column, width) in _COLUMNS.items():
        numbers = torch.tensor(record.get(column, []), dtype=torch.float32).reshape(-1, width)
        if answer.count(TASK_TOKENS[task]) != len(numbers):
            message = explain(
                f"{where} {column}",
                got=f"{len(numbers)} for {answer.count(TASK_TOKENS[task])} {TASK_TOKENS[task]} in the answer",
                expected="one each",
            )
            raise RowError(message, "target_count")
        targets[task] = numbers
    row = PreferenceRow(
        prompt=prompt,
        candidates=(Candidate(text=answer),),
        images=tuple(str(root / name) for name in record.get("images", ())),
        videos=tuple(str(root / name) for name in record.get("videos", ())),
        id=where,
        index=number,
        source=where,
    )
    return TaskRow(row, targets)


@dataclass
class TaskTrainer:
    """A model with task tokens, LoRA and heads.

    Args:
        model: fresh; gains tokens and an adapter.
        rank: of LoRA.
        learning_rate: of everything that trains.
        seed: of new weights and of the order of rows.
        weights: of tasks.

    Attributes:
        heads: of each task.
        trainables: the adapter.
    """

    model: VlmModel
    rank: int = 16
    learning_rate: float = 2e-5
    seed: int = 0
    weights: Mapping[Task, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Tokens first: the adapter must not wrap a layer that grows."""
        network = self.model.bare_network
        self.ids = add_task_tokens(self.model.traits.tokenizer, network)
        self.trainables: Trainables = attach(
            self.model.network,
            AdapterConfig(rank=self.rank),
            default_targets=self.model.adapter_targets,
            seed=self.seed,
        )
        features = network.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "task heads"))
            made = {"region": RegionHead(features), "temporal": SpanHead(features)}
        self.heads = nn.ModuleDict(made).to(self.model.device)
        self.rows = self._token_rows()
        parameters = [*self.trainables.parameters.values(), *self.heads.parameters(), *self.rows]
        # Without decay: rows of the vocabulary that are held must not shrink either.
        self.optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)

    def _token_rows(self) -> list[nn.Parameter]:
        """Embedding and output layer, of which the rows of task tokens alone get gradients."""
        layers = (
            self.model.bare_network.get_input_embeddings(),
            self.model.bare_network.get_output_embeddings(),
        )
        found = list({id(layer.weight): layer.weight for layer in layers}.values())
        for weight in found:
            weight.requires_grad_(True)
            free = torch.zeros(weight.shape[0], 1, device=weight.device)
            free[list(self.ids.values())] = 1.0
            weight.register_hook(lambda gradient, free=free: gradient * free.to(gradient.dtype))
        return found

    def loss(self, rows: Sequence[TaskRow]) -> TaskLoss:
        """The three terms on a batch of rows."""
        batch = window_batch(self.model, [item.row for item in rows], seed=self.seed)
        states = self.model.policy(self.model.network)(batch)
        place = batch.context.place if batch.context is not None else torch.zeros(0, dtype=torch.int64)
        tokens = batch.clean.flatten().index_select(0, place)
        mllm = -head_log_probs(states.hidden, states.head, tokens).mean()
        losses: dict[Task, Tensor] = {}
        for task, measure in _LOSSES.items():
            head = self.heads[task]
            wanted = torch.cat([item.targets[task] for item in rows]).to(self.model.device)
            found = task_states(states, tokens, self.ids[task])
            losses[task] = measure(head(found.float()), wanted)
        assign = assignment_loss(states, tokens, list(self.ids.values()))
        return tpo_loss(mllm, assign, losses, weights=self.weights)

    def step(self, rows: Sequence[TaskRow]) -> TaskLoss:
        """One update on a batch of rows; returns the loss before it."""
        self.optimizer.zero_grad()
        found = self.loss(rows)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]], 1.0
        )
        self.optimizer.step()
        return found

    def save(self, folder: Path) -> None:
        """The adapter as peft reads it, `task_heads.safetensors`, and the tokens with their rows."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_adapter(folder)
        tensors = {name: value.detach().cpu() for name, value in self.heads.state_dict().items()}
        places = list(self.ids.values())
        for number, weight in enumerate(self.rows):
            tensors[f"token_rows.{number}"] = weight.detach()[places].cpu()
        save_file(tensors, folder / "task_heads.safetensors")
        write_json(
            folder / "task_tokens.json", {TASK_TOKENS[task]: place for task, place in self.ids.items()}
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `vlm/train_tasks.py`; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train task tokens and heads beside answers (TPO).")
    parser.add_argument("rows", type=Path, help="JSON lines of dialogues with boxes or spans")
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--family", help="default: what the model's config says")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--steps", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="default %(default)s")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from mmalign.vlm.trained import load_base

    rows = read_tasks(given.rows)
    trainer = TaskTrainer(
        load_base(given.model, family=given.family).model,
        rank=given.rank,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    generator = torch.Generator().manual_seed(derive_seed(given.seed, "order"))
    for step in range(1, given.steps + 1):
        chosen = torch.randint(len(rows), (given.batch_size,), generator=generator).tolist()
        found = trainer.step([rows[number] for number in chosen])
        if step % 10 == 0 or step in (1, given.steps):
            parts: dict[str, Tensor] = {"loss": found.total, "mllm": found.mllm, "assign": found.assign}
            parts.update({str(task): loss for task, loss in found.tasks.items()})
            print(json.dumps({"step": step, **{name: round(float(part), 4) for name, part in parts.items()}}))
    trainer.save(given.output)
    return 0
