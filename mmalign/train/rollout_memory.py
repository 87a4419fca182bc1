"""What a run that samples needs on the device besides an offline run's memory, counted from its settings."""

from mmalign.train.config import ResolvedRun
from mmalign.train.plan import MemoryItem

__all__ = ["items_per_round", "memory_of_rollouts", "rows_with_gradient"]

_FLOAT32 = 4


def rows_with_gradient(run: ResolvedRun) -> int:
    """Rows that the network sees with gradients in one micro-step."""
    train, rollout = run.config.train, run.config.rollout
    batch_size = train.batch_size * run.config.likelihood.draws
    pairs = 2 * batch_size
    if train.split_backward:
        pairs = min(pairs, train.split_size or batch_size)
        batch_size = min(batch_size, pairs)
    if run.method.data == "unpaired":
        return batch_size
    halves = 1 if rollout.guidance_scale in (None, 1) else 2
    match run.config.likelihood.kind:
        case "transition":
            separate = run.method.rollout == "stepwise" and rollout.inner_steps
            return halves * (pairs if separate else batch_size)
        case "reward":
            return batch_size * halves * (rollout.samples or 1) * (rollout.gradient_steps or 1)
    return pairs


def items_per_round(run: ResolvedRun) -> int:
    """Items that one round adds to the queue of a device, at most."""
    rollout, prompts = run.config.rollout, run.config.rollout.prompts
    steps = rollout.num_steps or 1
    match run.method.rollout:
        case "best_of_n":
            return prompts
        case "stepwise":
            return prompts * max(steps - (rollout.divert_start or 0), 1)
        case "group":
            shared = max(round((rollout.train_share or 1.0) * steps), 1)
            return prompts * (rollout.samples or 1) * min(shared, max(steps - 1, 1))
    return run.config.train.batch_size


def memory_of_rollouts(
    run: ResolvedRun,
    *,
    latent_elements: int,
    conditioning_bytes: int,
    trained_bytes: int,
    reward_bytes: int | None,
) -> list[MemoryItem]:
    """Snapshots, queue, replay buffer and reward; nothing for an offline run.

    Sampling itself is not counted: it runs without gradients, before the micro-step's activations are there.

    Args:
        run: resolved.
        latent_elements: of one sample.
        conditioning_bytes: of one prompt.
        trained_bytes: of the trained weights.
        reward_bytes: of the reward's files; None: not known.
    """
    kind, rollout = run.method.rollout, run.config.rollout
    found = []
    if kind == "self_play" or (kind == "expert_states" and (rollout.refresh_every or 1) > 1):
        number = (rollout.capacity or 1) if kind == "self_play" else 1
        found.append(MemoryItem(f"earlier weights, up to {number}", number * trained_bytes))
    tensors = {"best_of_n": 2, "self_play": 2, "expert_states": 3, "stepwise": 4, "group": 2}.get(
        kind or "", 0
    )
    if tensors:
        count = items_per_round(run)
        texts = 2 if rollout.guidance_scale != 1 and kind in ("stepwise", "group") else 1
        prompts = rollout.prompts if kind in ("best_of_n", "stepwise", "group") else count
        size = count * tensors * latent_elements * _FLOAT32 + prompts * texts * conditioning_bytes
        found.append(MemoryItem(f"queue, {count} items of a round", size))
    if kind == "expert_states":
        size = (rollout.capacity or 1) * (2 * (rollout.num_steps or 1) + 1) * latent_elements * _FLOAT32
        found.append(MemoryItem("replay buffer", 0, f"{size / 2**30:.3f} GiB on the CPU"))
    if rollout.reward is not None and kind != "expert_states":
        note = "size of its files; none on this device if it is served elsewhere"
        if reward_bytes is None:
            note = "not counted: its size is not known before it is loaded"
        found.append(MemoryItem(f"reward {rollout.reward}", reward_bytes or 0, note))
    return found
