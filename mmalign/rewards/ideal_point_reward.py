"""PAL heads as rewards: over a CLIP, or over embeddings the samples bring along.

Source: arXiv 2406.08469; RamyaLab/pluralistic-alignment.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, RowError, ShapeError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.clip_backbones import backbone_weights
from mmalign.rewards.clip_models import HF_FILES, HuggingFaceClip
from mmalign.rewards.ideal_point_models import SETTINGS_FILE, WEIGHTS_FILE, PalHead
from mmalign.rewards.prompt_image import check_prompts, needed_image
from mmalign.rewards.sample import Sample, to_image
from mmalign.rewards.step_aware_reward import PICKSCORE
from mmalign.rewards.weights import find_weights, hashes, resolve

__all__ = ["PICKSCORE_CLIP", "PalReward", "load_pal_reward"]

PICKSCORE_CLIP = Weights(
    repository=PICKSCORE.repository,
    files=(*HF_FILES, *PICKSCORE.files),
    revision=PICKSCORE.revision,
    role="base",
    bytes=PICKSCORE.bytes,
)
"""The backbone whose embeddings PAL's authors use for pictures."""

_SUM_TOLERANCE = 1e-4


class PalReward(ModelReward):
    """Rewards for a user, who is named by the sample, by the sample's mixture, or when the reward is loaded.

    Embeddings in `extras["image_embedding"]` and `extras["prompt_embedding"]` are taken where they are; what
    is absent is computed by the backbone. The head works in float32.

    Args:
        card: what it is.
        head: in evaluation mode.
        backbone: of pictures and prompts, on `device`; None = embeddings must come along.
        weights: file name to hash.
        device: where the networks stand.
        dtype: of the backbone.
        user: of samples that name neither a user nor a mixture.
        mixture: of the same, instead of a user; K numbers that sum to 1.
        options: further choices, for the fingerprint.

    Raises:
        ConfigError: a user and a mixture, a mixture that is none, or a backbone of another width.
        UnknownNameError: no such user.
    """

    def __init__(
        self,
        card: Card,
        head: PalHead,
        *,
        backbone: HuggingFaceClip | None,
        weights: Mapping[str, str],
        device: str | torch.device,
        dtype: torch.dtype,
        user: str | None = None,
        mixture: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(card, device=device, dtype=dtype)
        self.head = head.to(self.device, torch.float32).eval().requires_grad_(False)
        self.backbone = backbone
        width = head.settings.input if backbone is None else int(backbone.network.config.projection_dim)
        if width != head.settings.input:
            message = explain(
                f"reward {card.name} backbone",
                got=f"[embeddings of width {width}]",
                expected=f"{head.settings.input}, as the head was trained on",
                do="Load with the backbone whose embeddings the head was trained on.",
            )
            raise ConfigError(message)
        if user is not None and mixture is not None:
            got, expected = "[a user and a mixture]", "one of them"
            raise ConfigError(explain(f"reward {card.name} options", got=got, expected=expected))
        self.weights, self.options = dict(weights), dict(options or {})
        self.options |= {"user": user, "mixture": None if mixture is None else list(mixture)}
        self.default: Tensor | None = None
        if user is not None:
            self.default = head.mixture(user).cpu()
        elif mixture is not None:
            try:
                self.default = self._mixture(mixture)
            except RowError as error:
                raise ConfigError(str(error)) from error

    # ------------------------------------------------------------------------------------------ one sample

    def prepare(self, sample: Sample) -> Prepared:
        """Find user and embeddings; decode and tokenise what has to be embedded.

        Raises:
            RowError: no user or an unknown one, no picture, an embedding of another width, or nothing that
                could embed.
        """
        weights, media = self._weights(sample), self.media(sample)
        return Prepared({"weights": weights, **media.inputs}, media.truncated)

    def media(self, sample: Sample) -> Prepared:
        """What `prepare` does, without asking whose reward it is: for `embed`.

        Raises:
            RowError: no picture, an embedding of another width, or nothing that could embed.
        """
        inputs: dict[str, Any] = {}
        truncated = False
        inputs["image"] = self._stored(sample, "image_embedding")
        if inputs["image"] is None:
            image = to_image(needed_image(self.card, sample))
            inputs["pixels"] = self._required("image").preprocessing(image)
        if self.head.settings.needs_prompt:
            inputs["prompt"] = self._stored(sample, "prompt_embedding")
            if inputs["prompt"] is None:
                inputs["ids"], truncated = self._required("prompt").tokens(sample.prompt)
        return Prepared(inputs, truncated)

    def _weights(self, sample: Sample) -> Tensor:
        user, mixture = sample.extras.get("user"), sample.extras.get("mixture")
        where = f"reward {self.card.name}"
        if user is not None and mixture is not None:
            message = explain(f"{where} extras", got="[a user and a mixture]", expected="one of them")
            raise RowError(message, reason="bad_user")
        if user is not None:
            if user not in self.head.users:
                message = f"{where}: {self.head.unknown(str(user))}"
                raise RowError(message, reason="unknown_user")
            return self.head.mixture(user).cpu()
        if mixture is not None:
            return self._mixture(mixture)
        if self.default is None:
            message = explain(
                f"{where} extras",
                got="[neither user nor mixture]",
                expected='"user" or "mixture"',
                do="Or load the reward with user=NAME or mixture=[...] for all samples.",
            )
            raise RowError(message, reason="missing_user")
        return self.default

    def _mixture(self, given: Any) -> Tensor:
        count = self.head.settings.prototypes
        found = torch.as_tensor(given, dtype=torch.float32)
        fits = found.shape == (count,) and bool((found >= 0).all())
        if not fits or abs(float(found.sum()) - 1.0) > _SUM_TOLERANCE:
            message = explain(
                f"reward {self.card.name} mixture", got=str(given), expected=f"{count} numbers that sum to 1"
            )
            raise RowError(message, reason="bad_mixture")
        return found

    def _stored(self, sample: Sample, name: str) -> Tensor | None:
        given = sample.extras.get(name)
        if given is None:
            return None
        found = torch.as_tensor(given, dtype=torch.float32)
        if found.shape != (self.head.settings.input,) or not bool(torch.isfinite(found).all()):
            message = explain(
                f"reward {self.card.name} extras[{name!r}]",
                got=f"[shape {list(found.shape)}]",
                expected=f"{self.head.settings.input} finite numbers",
            )
            raise RowError(message, reason="bad_embedding")
        return found

    def _required(self, kind: str) -> HuggingFaceClip:
        if self.backbone is None:
            message = explain(
                f"reward {self.card.name}",
                got=f"[no {kind} embedding]",
                expected=f'extras["{kind}_embedding"], as it was loaded with backbone="none"',
            )
            raise RowError(message, reason="missing_embedding")
        return self.backbone

    # ------------------------------------------------------------------------------------------ a batch

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample 1"]:
        """Rewards of prepared samples."""
        images, prompts = self.embed(batch)
        weights = torch.stack([prepared.inputs["weights"] for prepared in batch]).to(self.device)
        rewards: Tensor = self.head(images, weights, prompts)
        return rewards[:, None]

    def embed(
        self, batch: Sequence[Prepared]
    ) -> tuple[Float[Tensor, "sample input"], Float[Tensor, "sample input"] | None]:
        """Embeddings of pictures and, where the head reads them, of prompts: what `Choices` are made of."""
        images = self._embedded(batch, "image", "pixels")
        return images, self._embedded(batch, "prompt", "ids") if self.head.settings.needs_prompt else None

    def _embedded(self, batch: Sequence[Prepared], stored: str, raw: str) -> Tensor:
        """Embeddings of a batch: those that came along, and those of the backbone, in order."""
        rows: list[Tensor | None] = [prepared.inputs[stored] for prepared in batch]
        todo = [place for place, row in enumerate(rows) if row is None]
        if todo and self.backbone is not None:
            given = torch.stack([batch[place].inputs[raw] for place in todo])
            run = self.backbone.image_features if raw == "pixels" else self.backbone.text_features
            for place, row in zip(todo, run(given), strict=True):
                rows[place] = row
        return torch.stack([row.to(self.device) for row in rows if row is not None])

    def score_tensor(
        self,
        pixels: Float[Tensor, "sample 3 height width"],
        prompts: Sequence[str],
        users: Sequence[str | Sequence[float]] | None = None,
    ) -> Float[Tensor, " sample"]:
        """Rewards of pictures as tensors, with their graph.

        Args:
            pixels: in [0, 1].
            prompts: one per picture.
            users: a name or a mixture per picture; None = what the reward was loaded for.

        Raises:
            ShapeError: not as many prompts or users as pictures.
            ConfigError: no backbone, or no user.
        """
        check_prompts(self.card, pixels, prompts)
        if self.backbone is None:
            where = f"reward {self.card.name} score_tensor"
            raise ConfigError(explain(where, got="[backbone 'none']", expected="a backbone"))
        weights = self._weights_of(len(pixels), users)
        images = self.backbone.image_features(self.backbone.preprocessing.tensor(pixels.to(self.device)))
        texts = None
        if self.head.settings.needs_prompt:
            ids = torch.stack([self.backbone.tokens(prompt)[0] for prompt in prompts])
            texts = self.backbone.text_features(ids)
        found: Tensor = self.head(images, weights.to(self.device), texts)
        return found

    def _weights_of(self, count: int, users: Sequence[str | Sequence[float]] | None) -> Tensor:
        """Mixtures of users, or the default one for all."""
        where = f"reward {self.card.name} score_tensor"
        if users is not None:
            if len(users) != count:
                got, expected = f"[{len(users)} users]", f"{count}, one per picture"
                raise ShapeError(explain(where, got=got, expected=expected))
            rows = [self.head.mixture(u) if isinstance(u, str) else self._mixture(u) for u in users]
            return torch.stack([row.cpu() for row in rows])
        if self.default is None:
            expected = "users, or a reward loaded with user=NAME or mixture=[...]"
            raise ConfigError(explain(where, got="[no users]", expected=expected))
        return self.default.expand(count, -1)

    def settings(self) -> Mapping[str, Any]:
        """The head's and the backbone's weights, preprocessing and options."""
        backbone = None if self.backbone is None else dict(self.backbone.settings())
        return {"weights": self.weights, "backbone": backbone, "options": self.options}


def load_pal_reward(
    card: Card,
    form: str,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    backbone: str = "pickscore",
    user: str | None = None,
    mixture: Sequence[float] | None = None,
) -> PalReward:
    """The reward of a head the user trained.

    Args:
        card: what it is.
        form: the head must have.
        weights: folder of the head; the backbone's files may lie in it too, or in the hub's cache.
        device: where the networks stand.
        dtype: of the backbone.
        backbone: whose embeddings the head was trained on: "pickscore", a name of `clip_backbones`, "none".
        user: see `PalReward`.
        mixture: see `PalReward`.

    Raises:
        ConfigError: no folder: no head for pictures is published.
        UnknownNameError: no such backbone or user.
        CheckpointError: files are missing or do not fit.
    """
    if weights is None:
        message = explain(
            f"reward {card.name}",
            got="[no weights]",
            expected="the folder of a head you trained (PalHead.save); none for pictures is published",
            do="Train one with mmalign.rewards.ideal_point_training.fit_head.",
        )
        raise ConfigError(message)
    head = PalHead.load(weights)
    if head.settings.form != form:
        got, expected = f"[a head of form {head.settings.form}]", f"form {form}"
        do = f"Load it as pal_{head.settings.form}."
        message = explain(f"reward {card.name} {weights}", got=got, expected=expected, do=do)
        raise CheckpointError(message)
    return PalReward(
        card,
        head,
        backbone=_backbone(card, backbone, Path(weights), device, dtype),
        weights=hashes(Path(weights), (SETTINGS_FILE, WEIGHTS_FILE)),
        device=device,
        dtype=dtype,
        user=user,
        mixture=mixture,
        options={"backbone": backbone},
    )


def _backbone(
    card: Card, name: str, folder: Path, device: str | torch.device, dtype: torch.dtype
) -> HuggingFaceClip | None:
    """The tower, from the head's folder if it lies there, otherwise from the hub's cache."""
    if name == "none":
        return None
    known = PICKSCORE_CLIP if name == "pickscore" else backbone_weights(name)
    found = find_weights(known, folder=folder) or resolve(known, reward=card.name)
    return HuggingFaceClip(found, device=device, dtype=dtype, crop="floor")
