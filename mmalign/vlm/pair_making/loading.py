"""Models of a plan, loaded once each, and what identifies their weights."""

from typing import TYPE_CHECKING

import torch

from mmalign import registry
from mmalign.data.pair_making.weights import weights_digest
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint
from mmalign.train.sections import ModelConfig
from mmalign.vlm.pair_making.plan import DialoguePairPlan

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["Models", "model_name"]


def model_name(model: "VlmModel") -> str:
    """What stands in the column `made_model`: family, source, and a digest of settings and weights."""
    identity = fingerprint(model.describe(), weights_digest(model.bare_network))
    return f"{model.family}:{model.settings.source}@{identity}"


class Models:
    """Loads what a plan names; two parts that name the same model share it.

    Args:
        plan: with the models.
        device: where they run.
    """

    def __init__(self, plan: DialoguePairPlan, device: torch.device | str) -> None:
        self.plan, self.device = plan, torch.device(device)
        self._loaded: dict[tuple[ModelConfig, str | None], VlmModel] = {}

    @property
    def policy(self) -> "VlmModel":
        """Whose answers are looked for."""
        return self._load(self.plan.model, self.plan.adapter)

    @property
    def judge(self) -> "VlmModel":
        """Who sees the image and judges."""
        return self.policy if self.plan.judge is None else self._load(self.plan.judge, None)

    @property
    def writer(self) -> "VlmModel":
        """Who works on words."""
        return self.judge if self.plan.writer is None else self._load(self.plan.writer, None)

    def _load(self, config: ModelConfig, adapter: str | None) -> "VlmModel":
        key = (config, adapter)
        if key not in self._loaded:
            if registry.modality(config.family) != "language":
                message = explain("model.family", got=config.family, expected="a family of language models")
                raise ConfigError(message)
            model = registry.find("families", config.family).load(
                config, self.plan.tokens, device=self.device, dtype=getattr(torch, self.plan.dtype)
            )
            if adapter is not None:
                try:
                    model.bare_network.load_adapter(adapter)
                except (OSError, ValueError) as error:
                    message = explain("adapter", got=adapter, expected="a folder that peft saved")
                    raise ConfigError(message) from error
            self._loaded[key] = model
        found: VlmModel = self._loaded[key]
        return found
