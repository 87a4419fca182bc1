"""Align a tiny LLaVA on windows of a robot's steps, in plain torch: GRAPE's trajectory-wise preferences.

The model and the camera's pictures are made up on the spot; nothing is downloaded.
"""

import io
import tempfile
from pathlib import Path

import torch
from PIL import Image

from mmalign import objectives, registry
from mmalign.likelihood import AdaptersOff, Tokens, adapter_toggle
from mmalign.testing.tiny_vlm import tiny_vlm
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.token_sections import TokensConfig
from mmalign.vlm import trajectories


def picture(shade):
    """What the camera sees when the gripper is `shade` of the way down."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (8 * shade, 64, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


def attempt(name, actions):
    """One attempt at the task: every step is a picture and an action."""
    steps = [trajectories.ActionStep((picture(n),), action) for n, action in enumerate(actions)]
    return trajectories.Trajectory("Put the block on the plate.", tuple(steps), id=name)


attempts = [attempt("straight", ["1 0 2"] * 8), attempt("detour", ["2 1 0"] * 4 + ["1 0 2"] * 4)]
with tempfile.TemporaryDirectory() as folder:
    source = str(tiny_vlm("llava", Path(folder) / "llava"))
    model = registry.find("families", "llava").load(
        ModelConfig(family="llava", source=source), TokensConfig(), device="cpu", dtype=torch.float32
    )

# Which attempt is better: the model's own opinion, what the stages cost, and whether the block got there.
opinion = torch.tensor([trajectories.self_log_likelihood(model, item) for item in attempts])
costs, success = torch.tensor([[0.1, 0.0], [1.5, 0.2]]), torch.tensor([True, True])
reward = trajectories.gcpg_reward(opinion, costs, success, self_weight=0.01)
better, worse = trajectories.ranked_pairs(reward)[0]
print(f"better: {attempts[better].id}, rewards {[round(value, 2) for value in reward.tolist()]}")

trainables = attach(model.network, AdapterConfig(rank=4), default_targets=model.adapter_targets, seed=0)
policy, likelihood, loss = model.policy(model.network), Tokens(), objectives.grape_tpo(beta=0.1)
reference = AdaptersOff(policy, adapter_toggle(model.network))
batch = trajectories.window_batch(model, trajectories.window_rows(attempts[better], attempts[worse]))
optimizer = torch.optim.AdamW(trainables.parameters.values(), lr=1e-3)
for step in range(5):
    draw = likelihood.draw(batch)
    base = reference.evaluate(likelihood, batch, draw)
    scores = trajectories.window_scores(likelihood.evaluate(policy, batch, draw), base)
    output = loss(scores, batch.labels)
    optimizer.zero_grad()
    output.loss.mean().backward()
    optimizer.step()
    print(f"step {step}: loss {output.loss.detach().mean():.4f}")
