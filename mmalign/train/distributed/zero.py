"""DeepSpeed ZeRO: its engine reduces and partitions; the update, the checkpoint and the export stay ours.

Stage 1 spreads the optimiser's state over the processes, stage 2 also gradients, stage 3 also weights. The
engine's own clipping, precision and checkpoint files are off: it hands out the partitions of the gradient,
which `Updater` scales, clips and drops as those of one process.

The engine's public functions read and write moments one whole tensor at a time; on the way into a
checkpoint a process keeps its rows of each, so the files are those of FSDP2.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.sharded import fill_part, is_partitioned, local_part, place, whole, whole_of
from mmalign.train.adapters import Trainables
from mmalign.train.distributed.sharding import ENGINE
from mmalign.train.distributed.shards import whole_values
from mmalign.train.planning.launches import ZeroLimits

__all__ = ["ZeroEngine", "gathers_itself", "make_engine", "zero_settings"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_settings(plugin: Any) -> dict[str, Any]:
    """The engine's configuration for a launch.

    Args:
        plugin: accelerate's DeepSpeedPlugin; `deepspeed_config["zero_optimization"]` counts, the rest of its
            file is the run's business.

    Raises:
        ConfigError: stage 0, or an optimiser or weights that live elsewhere than on the device.
    """
    zero = dict(plugin.deepspeed_config["zero_optimization"])
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        message = explain("accelerate configuration: zero_stage", got=stage, expected="1, 2 or 3")
        raise ConfigError(message)
    if stage == 3 and plugin.zero3_init_flag:
        message = explain(
            "accelerate configuration: zero3_init_flag",
            got=True,
            expected="false: weights are read and adapters put on whole, then spread",
        )
        raise ConfigError(message)
    for name in ("offload_optimizer", "offload_param"):
        device = (zero.pop(name, None) or {}).get("device", "none")
        if device != "none":
            message = explain(
                f"accelerate configuration: {name}_device",
                got=device,
                expected="none: gradients are clipped and checked, and weights averaged, on the GPU",
                do="To need less memory, take more GPUs, model.gradient_checkpointing or LoRA.",
            )
            raise ConfigError(message)
    zero = {name: value for name, value in zero.items() if value != "auto"}
    if stage < 3:
        zero["compute_grad_norm"] = False  # ours is the norm that counts
    return {
        # The loop accumulates and divides by itself; these numbers only have to agree with each other.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


def _start(device: torch.device, **settings: Any) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Reductions in shared memory would be compiled now. gloo reduces, too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(dist_init_required=False, **settings)
    return engine


def gathers_itself(network: nn.Module, settings: Mapping[str, Any], device: torch.device) -> Any:
    """Spread a frozen network as stage 3 does; every block gathers its weights and gives them back.

    Returns:
        The engine, which must live as long as the network.
    """
    return _start(device, model=network, config=dict(settings))


def make_engine(
    trainables: Trainables,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    device: torch.device,
) -> "ZeroEngine":
    """Spread what the stage spreads; the optimiser's parameters are exchanged for its partitions.

    Args:
        trainables: whole trained weights, float32.
        optimizer: AdamW of them.
        settings: from `zero_settings`.
        device: of the run.
    """
    listed = [weight for group in optimizer.param_groups for weight in group["params"]]
    pointers = {weight.data_ptr(): weight for weight in listed}
    # peft drops the adapter's name from the names of weights; which is which is told by their storage.
    names = {name: pointers[value.data_ptr()] for name, value in trainables.state().items()}
    engine = _start(
        device,
        model=trainables.network,
        optimizer=optimizer,
        config=_with_fitting_bucket(settings, trainables.count),
        model_parameters=listed,
    )
    made = ZeroEngine(engine, trainables, optimizer, listed, names)
    object.__setattr__(trainables.network, ENGINE, made)
    return made


def _with_fitting_bucket(settings: Mapping[str, Any], num_trained: int) -> dict[str, Any]:
    """The engine's configuration with a bucket no larger than the gradient.

    DeepSpeed allocates it whole, however little trains: 2 GB by its own default.
    """
    zero = dict(settings["zero_optimization"])
    zero["reduce_bucket_size"] = min(int(zero.get("reduce_bucket_size", ZeroLimits.bucket)), num_trained)
    return {**settings, "zero_optimization": zero}


class ZeroEngine:
    """One network, its optimiser, and what DeepSpeed does to both.

    Args:
        engine: DeepSpeed's.
        trainables: the trained weights.
        optimizer: ours, stepping on partitions.
        listed: trained weights in the order of the optimiser's groups before it was given to the engine.
        names: trained weights by the names a checkpoint has for them.
    """

    def __init__(
        self,
        engine: Any,
        trainables: Trainables,
        optimizer: torch.optim.Optimizer,
        listed: Sequence[nn.Parameter],
        names: Mapping[str, nn.Parameter],
    ) -> None:
        self.engine, self.zero = engine, engine.optimizer
        self.trainables, self.optimizer = trainables, optimizer
        self.listed, self.names = list(listed), dict(names)
        self._groups: list[list[nn.Parameter]] = getattr(self.zero, "bit16_groups", None) or list(
            self.zero.fp16_groups
        )
        self._flats: list[Tensor] = getattr(self.zero, "single_partition_of_fp32_groups", None) or list(
            self.zero.fp32_partitioned_groups_flat
        )

    # --- one update -----------------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """The gradient of a scalar, reduced and partitioned as the stage does.

        The network is called by itself, for the engine's own forward pass switches autocast off; what that
        call would have noted is noted here.
        """
        self.zero.clear_backward_seen_flag()
        self.engine.backward(loss)

    @contextlib.contextmanager
    def unsynced(self) -> Iterator[None]:
        """For the backward passes of an update but the last. Stages 2 and 3 reduce every one of them."""
        before = self.engine.is_gradient_accumulation_boundary()  # it nests
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(before)

    def gradients(self) -> list[Tensor]:
        """What this process holds of the gradient, averaged over processes; writing to it changes it."""
        return [value for group in range(len(self._groups)) for value in self.zero.averaged_gradients[group]]

    def norm(self, gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
        """The norm of the whole gradient; one sum over the processes."""
        squared = torch.nn.utils.get_total_norm(gradients).to(torch.float32).square()
        torch.distributed.all_reduce(squared)
        return squared.sqrt()

    def step(self) -> None:
        """The optimiser's step on the partitions, then weights as the stage keeps them."""
        self.engine.step()

    # --- checkpoints ----------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by the checkpoint's names; a collective at stage 3."""
        return {name: self._rows(weight, weight) for name, weight in self.names.items()}

    def averages(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values that are held as the weights are, for a checkpoint; a collective at stage 3."""
        return {name: self._rows(self.trainables.parameters[name], value) for name, value in values.items()}

    def moments(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `flatten_optimizer`: of every weight, in the optimiser's order; a collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        groups = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
            for group in (
                {k: v for k, v in one.items() if k != "params"} for one in self.optimizer.param_groups
            )
        ]
        described = {"scalars": {}, "groups": groups}
        tensors: dict[str, Tensor] = {}
        if not self.optimizer.state:
            return tensors, described
        steps = self._steps()
        for number, weight in enumerate(self.listed):
            for key in _MOMENTS:
                tensors[f"{number}.{key}"] = _own_rows(safe_get_full_optimizer_state(weight, key))
            tensors[f"{number}.step"] = steps[id(weight)].clone()  # a file holds no tensor twice
        return tensors, described

    def restore(
        self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], described: Mapping[str, Any]
    ) -> None:
        """Put back weights and moments, from a checkpoint of any mode and any number of processes.

        Raises:
            CheckpointError: other weights or parameter groups.
        """
        groups = described["groups"]
        if set(weights) != set(self.names) or len(groups) != len(self.optimizer.param_groups):
            message = explain(
                "checkpoint weights",
                got=f"{len(weights)} in {len(groups)} groups",
                expected=f"the run's {len(self.names)} in {len(self.optimizer.param_groups)} groups",
                do="Was the run made with another adapter.rank, adapter.targets or adapter.kind?",
            )
            raise CheckpointError(message)
        for name, value in whole_values(weights):
            place(self.names[name], value)
        self.zero.refresh_fp32_params()
        if is_partitioned(self.listed[0]) and (kept := self.zero.persistent_parameters):
            kept[0].all_gather(kept)  # small weights stay whole between steps: their copies are old
        for group, saved in zip(self.optimizer.param_groups, groups, strict=True):
            group |= {
                key: tuple(value) if isinstance(group.get(key), tuple) else value
                for key, value in saved.items()
            }
        self._restore_moments(tensors)

    @torch.no_grad()
    def restore_averages(self, averages: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Write whole values into what is held as the weights are.

        Args:
            averages: by the names of parameters; written to.
            values: from a checkpoint.
        """
        for name, value in whole_values(values):
            if is_partitioned(self.trainables.parameters[name]):
                fill_part(averages[name], value)
            else:
                averages[name].copy_(value)

    @torch.no_grad()
    def _restore_moments(self, tensors: Mapping[str, Tensor]) -> None:
        for flat in self._flats:
            state = self.optimizer.state[flat]
            state["step"] = torch.zeros((), device=flat.device)
            for key in _MOMENTS:
                state[key] = state[key].zero_() if key in state else torch.zeros_like(flat)
        if not is_partitioned(self.listed[0]):
            self.zero._lazy_init_hp_params_optimizer_state()
        done = {id(weight): flat for group, flat in self._zipped for weight in group}
        for name, value in whole_values(tensors):
            number, _, key = name.partition(".")
            weight = self.listed[int(number)]
            if key == "step":
                self.optimizer.state[done[id(weight)]]["step"].copy_(value)
            else:
                self._set_moment(weight, key, value)

    @property
    def _zipped(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """Groups of weights, and the flat partition on which the optimiser steps for each."""
        return list(zip(self._groups, self._flats, strict=True))

    def _set_moment(self, weight: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(weight.device)
        if not is_partitioned(weight):
            safe_set_full_optimizer_state(weight, value, key)
            return
        part = torch.zeros_like(local_part(weight))
        fill_part(part, value)
        safe_set_local_optimizer_state(weight, part, key)

    def _steps(self) -> dict[int, Tensor]:
        """Updates done, by the identity of each weight."""
        return {
            id(weight): self.optimizer.state[flat]["step"].detach().cpu()
            for group, flat in self._zipped
            for weight in group
        }

    def _rows(self, weight: nn.Parameter, value: Tensor) -> Tensor:
        """Whole where every process has it whole; else this process's rows, on the CPU."""
        if not is_partitioned(weight):
            return value.detach()
        return _own_rows(whole(weight) if value is weight else whole_of(weight, value))


def _own_rows(value: Tensor) -> Tensor:
    """A whole tensor as a sharded one of which this process keeps its rows, on the CPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    count, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    chunks = value.detach().chunk(count)
    own = chunks[rank] if rank < len(chunks) else value[:0]
    return DTensor.from_local(
        own.to("cpu", copy=True),
        init_device_mesh("cpu", (count,)),
        [Shard(0)],
        run_check=False,
        shape=value.shape,
        stride=value.contiguous().stride(),
    )
