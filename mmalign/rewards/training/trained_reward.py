"""A trained head over its backbone as a reward like any other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, RowError, ShapeError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.clip_backbones import backbone_weights
from mmalign.rewards.ideal_point_models import PalHead
from mmalign.rewards.prompt_image import check_prompts
from mmalign.rewards.sample import Sample
from mmalign.rewards.training.adapters import attach_adapter, load_adapter
from mmalign.rewards.training.backbones import Backbone, make_backbone
from mmalign.rewards.training.pairs import FeatureBatch
from mmalign.rewards.training.saved import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    Description,
    load_head,
    read_adapter,
    read_description,
)
from mmalign.rewards.training.scoring import Head, rewards_of
from mmalign.rewards.weights import find_weights, hashes

__all__ = ["DifferentiableTrainedReward", "TrainedReward", "load_trained"]

_SUM_TOLERANCE = 1e-4


class TrainedReward(ModelReward):
    """Rewards of a trained head, in calibrated logits: sigmoid of a difference is P(the first is better).

    A normal reward has a second output, its standard deviation. PAL's head reads the user (or the mixture) of
    `extras`, a context-conditioned one the context.

    Args:
        card: what it is, before it is known what was trained.
        description: of the folder.
        head: on the CPU; works in float32.
        backbone: of the features the head was trained on, on `device`.
        weights: file name to hash.
        device: where the networks stand.
        dtype: of the backbone.
        user: of samples that name neither user nor mixture.
        mixture: instead of a user; K numbers that sum to 1.
        context: of samples that bring none.

    Raises:
        ConfigError: options the trained head has no use for.
        UnknownNameError: no such user.
    """

    def __init__(
        self,
        card: Card,
        description: Description,
        head: Head,
        backbone: Backbone,
        *,
        weights: Mapping[str, str],
        device: str | torch.device,
        dtype: torch.dtype,
        user: str | None = None,
        mixture: Sequence[float] | None = None,
        context: str | None = None,
    ) -> None:
        super().__init__(_card(card, description, backbone), device=device, dtype=dtype)
        self.description, self.backbone, self.weights = description, backbone, dict(weights)
        self.head = head.to(self.device, torch.float32).eval().requires_grad_(False)
        self._check_options(user, mixture, context)
        self.context = context
        self.options = {
            "user": user,
            "mixture": None if mixture is None else list(mixture),
            "context": context,
        }
        self.mixture: Tensor | None = None
        if user is not None and isinstance(self.head, PalHead):
            self.mixture = self.head.mixture(user).cpu()
        elif mixture is not None:
            self.mixture = self._given_mixture(mixture, ConfigError)

    def _check_options(self, user: Any, mixture: Any, context: Any) -> None:
        where = f"reward {self.card.name} options"
        if user is not None and mixture is not None:
            raise ConfigError(explain(where, got="[a user and a mixture]", expected="one of them"))
        if (user is not None or mixture is not None) and not isinstance(self.head, PalHead):
            expected = "none: it was not trained on users (reward_pal)"
            raise ConfigError(explain(where, got="[a user or a mixture]", expected=expected))
        if context is not None and not self.description.context:
            expected = "none: it was not trained on contexts (reward_context)"
            raise ConfigError(explain(where, got="[a context]", expected=expected))

    # ------------------------------------------------------------------------------------------ one sample

    def prepare(self, sample: Sample) -> Prepared:
        """What the backbone reads of the sample, of its prompt and of its context, and its user's mixture.

        Raises:
            RowError: no picture, no context or no user where one is needed.
        """
        parts: dict[str, Prepared] = {"item": self.backbone.prepare(sample)}
        if self.backbone.prompt_width:
            parts["prompt"] = self.backbone.prepare_text(sample.prompt)
        if self.description.context:
            parts["context"] = self.backbone.prepare_text(self._context_of(sample))
        inputs: dict[str, Any] = {name: dict(part.inputs) for name, part in parts.items()}
        if isinstance(self.head, PalHead):
            inputs["mixture"] = self._mixture_of(sample)
        return Prepared(inputs, any(part.truncated for part in parts.values()))

    def _context_of(self, sample: Sample) -> str:
        found = sample.extras.get("context", self.context)
        if not isinstance(found, str):
            message = explain(
                f"reward {self.card.name} extras",
                got=found,
                expected='"context", a text',
                do="Or load the reward with context=TEXT for all samples.",
            )
            raise RowError(message, reason="missing_context")
        return found

    def _mixture_of(self, sample: Sample) -> Tensor:
        user, mixture = sample.extras.get("user"), sample.extras.get("mixture")
        where = f"reward {self.card.name}"
        if user is not None and mixture is not None:
            message = explain(f"{where} extras", got="[a user and a mixture]", expected="one of them")
            raise RowError(message, reason="bad_user")
        if user is not None and isinstance(self.head, PalHead):
            if str(user) not in self.head.users:
                message = f"{where}: {self.head.unknown(str(user))}"
                raise RowError(message, reason="unknown_user")
            return self.head.mixture(str(user)).cpu()
        if mixture is not None:
            return self._given_mixture(mixture, RowError)
        if self.mixture is None:
            message = explain(
                f"{where} extras",
                got="[neither user nor mixture]",
                expected='"user" or "mixture"',
                do="Or load the reward with user=NAME or mixture=[...] for all samples.",
            )
            raise RowError(message, reason="missing_user")
        return self.mixture

    def _given_mixture(self, given: Any, error: type[RowError] | type[ConfigError]) -> Tensor:
        count = self.head.settings.prototypes if isinstance(self.head, PalHead) else 0
        found = torch.as_tensor(given, dtype=torch.float32)
        fits = found.shape == (count,) and bool((found >= 0).all())
        if not fits or abs(float(found.sum()) - 1.0) > _SUM_TOLERANCE:
            expected = f"{count} numbers that sum to 1"
            raise error(explain(f"reward {self.card.name} mixture", got=str(given), expected=expected))
        return found

    # ------------------------------------------------------------------------------------------ a batch

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """Calibrated rewards of prepared samples."""

        def texts(name: str) -> Tensor | None:
            if name not in batch[0].inputs:
                return None
            return self.backbone.texts([Prepared(prepared.inputs[name]) for prepared in batch]).to(
                self.device
            )

        items = self.backbone.items([Prepared(prepared.inputs["item"]) for prepared in batch]).to(self.device)
        mixtures = None
        if isinstance(self.head, PalHead):
            mixtures = torch.stack([prepared.inputs["mixture"] for prepared in batch]).to(self.device)
        features = FeatureBatch(items, texts("prompt"), texts("context"), mixtures=mixtures)
        return self.calibrated(rewards_of(self.head, features))

    def calibrated(self, found: Float[Tensor, "sample output"]) -> Float[Tensor, "sample output"]:
        """Rewards divided by the temperature; log sigma as the deviation in the same unit."""
        temperature = self.description.temperature
        if found.shape[1] == 1:
            return found / temperature
        return torch.stack([found[:, 0] / temperature, (found[:, 1] - math.log(temperature)).exp()], dim=1)

    def settings(self) -> Mapping[str, Any]:
        """Hashes of head and backbone, temperature and options."""
        return {
            "weights": self.weights,
            "method": self.description.method,
            "temperature": self.description.temperature,
            "adapter": dict(self.description.adapter),
            "backbone": dict(self.backbone.settings()),
            "options": self.options,
        }


class DifferentiableTrainedReward(TrainedReward):
    """The same over a backbone through which gradients reach the pixels."""

    def score_tensor(
        self,
        pixels: Float[Tensor, "sample 3 height width"],
        prompts: Sequence[str],
        contexts: Sequence[str] | None = None,
        users: Sequence[str | Sequence[float]] | None = None,
    ) -> Float[Tensor, " sample"]:
        """Calibrated rewards (the mean of normal ones) of pictures as tensors, with their graph.

        Args:
            pixels: in [0, 1].
            prompts: one per picture.
            contexts: one per picture; None = what the reward was loaded with.
            users: a name or a mixture per picture; None = what the reward was loaded with.

        Raises:
            ShapeError: not as many prompts, contexts or users as pictures.
            RowError: no context or user where one is needed.
        """
        check_prompts(self.card, pixels, prompts)
        extras: list[dict[str, Any]] = [{} for _ in prompts]
        for name, given in (("context", contexts), ("user", users)):
            if given is None:
                continue
            if len(given) != len(prompts):
                got, expected = f"[{len(given)}]", f"{len(prompts)}, one per picture"
                raise ShapeError(explain(f"reward {self.card.name} {name}s", got=got, expected=expected))
            for extra, value in zip(extras, given, strict=True):
                extra["mixture" if name == "user" and not isinstance(value, str) else name] = value
        samples = [Sample(prompt=p, extras=e) for p, e in zip(prompts, extras, strict=True)]
        items = self.backbone.pixel_items(pixels, prompts).to(self.device)
        texts = self._texts(prompts) if self.backbone.prompt_width else None
        conditions = self._texts([self._context_of(s) for s in samples]) if self.description.context else None
        mixtures = None
        if isinstance(self.head, PalHead):
            mixtures = torch.stack([self._mixture_of(sample) for sample in samples]).to(self.device)
        found = rewards_of(self.head, FeatureBatch(items, texts, conditions, mixtures=mixtures))
        return self.calibrated(found)[:, 0]

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.backbone.texts([self.backbone.prepare_text(text) for text in texts]).to(self.device)


def _card(card: Card, description: Description, backbone: Backbone) -> Card:
    gaussian = bool(description.head.get("settings", {}).get("gaussian"))
    needs = [
        name
        for name, read in (("user", description.head["kind"] == "pal"), ("context", description.context))
        if read
    ]
    return replace(
        card,
        name=f"trained[{description.name}]",
        title=f"{description.name}: {description.method} on {description.backbone['kind']} features",
        outputs=("score", "deviation") if gaussian else ("score",),
        differentiable=backbone.differentiable,
        text_limit=backbone.text_limit,
        needs=tuple(needs),
    )


# -------------------------------------------------------------------------------------------- loading


def load_trained(
    card: Card,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    backbone: str | Path | None = None,
    **options: Any,
) -> TrainedReward:
    """The reward of a folder that a training wrote.

    Args:
        card: of the catalogue.
        weights: the folder.
        device: where the networks stand.
        dtype: of the backbone.
        backbone: folder with the backbone's files; None = this folder if they lie in it, where they were when
            it was trained, the hub's cache, or the hub.
        options: `user`, `mixture`, `context` of `TrainedReward`.

    Raises:
        ConfigError: no folder.
        CheckpointError: files are missing, do not fit, or the backbone is not the one of the training.
    """
    if weights is None:
        message = explain(
            f"reward {card.name}",
            got="[no weights]",
            expected="the folder of a reward you trained",
            do="Train one: mmalign train CONFIG with method reward_bradley_terry (see `mmalign methods`).",
        )
        raise ConfigError(message)
    folder = Path(weights)
    description = read_description(folder)
    head = load_head(folder, description)
    given = dict(description.backbone)
    given["weights"] = backbone or _beside(folder, given) or _still_there(given.get("weights"))
    tower = make_backbone(**given, device=device, dtype=dtype)
    if dict(tower.settings()) != dict(description.backbone_settings):
        message = explain(
            f"{folder / DESCRIPTION_FILE} backbone",
            got=f"[other features: {_different(tower.settings(), description.backbone_settings)} differ]",
            expected="the backbone the head was trained on",
            do="Load with backbone=FOLDER of that one.",
        )
        raise CheckpointError(message)
    if description.adapter:
        attach_adapter(tower, **description.adapter)
        load_adapter(tower, read_adapter(folder), where=str(folder / WEIGHTS_FILE))
    kind = DifferentiableTrainedReward if tower.differentiable else TrainedReward
    hashed = hashes(folder, (WEIGHTS_FILE,))
    return kind(card, description, head, tower, weights=hashed, device=device, dtype=dtype, **options)


def _beside(folder: Path, given: Mapping[str, Any]) -> str | None:
    """The reward's own folder, where the files of a CLIP lie in it."""
    if given["kind"] != "clip":
        return None
    found = find_weights(backbone_weights(given.get("name") or "vit-h-14"), folder=folder)
    return None if found is None or not found.is_relative_to(folder) else str(found)


def _still_there(path: str | None) -> str | None:
    return path if path is not None and Path(path).is_dir() else None


def _different(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    return ", ".join(sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key)))
