"""A vision-language model as the training loop sees it: examples, micro-batches, states, answers, files.

What differs between families is in their traits. Layout, the vision pass, generation and saving are here,
once.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, PreferenceRow, RowKeys
from mmalign.data.config import ImageLimits
from mmalign.errors import ShapeError, explain
from mmalign.files import fingerprint
from mmalign.likelihood.token_head import TokenStates
from mmalign.train.model import Encoded
from mmalign.vlm.capability import Mode, choose_mode
from mmalign.vlm.corruptions.others import OtherRows
from mmalign.vlm.inputs import VlmInputs
from mmalign.vlm.network import LanguageNetwork, bare
from mmalign.vlm.packing import inputs_of, lay_out
from mmalign.vlm.reader import DialogueReader
from mmalign.vlm.traits import VlmTraits
from mmalign.vlm.vision import encode_media

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig
    from mmalign.train.model import AnswerMakers
    from mmalign.train.online import AnswerReward
    from mmalign.train.token_sections import AnswerRolloutConfig, TokensConfig
    from mmalign.vlm.answer_rounds import RoundReader

__all__ = ["VlmModel", "VlmPolicy"]


@dataclass(frozen=True)
class VlmPolicy:
    """A network as the token likelihood sees it.

    Args:
        network: a `LanguageNetwork`, however it is wrapped.
    """

    network: nn.Module

    def __call__(self, batch: Batch) -> TokenStates:
        """The state before every scored token, and the head.

        Raises:
            ShapeError: the batch holds no dialogues.
        """
        inputs = batch.context
        if not isinstance(inputs, VlmInputs):
            message = explain(
                "Batch.context",
                got=type(inputs).__name__,
                expected="VlmInputs, as VlmModel.encode makes them",
            )
            raise ShapeError(message)
        return TokenStates(self.network(inputs), bare(self.network).head)


class VlmModel:
    """A loaded vision-language model; what the training loop, panels, pair makers and exporters work with.

    Args:
        family: name in the registry.
        network: the model, ready to be called.
        reader: rows to tokens.
        settings: the run's `model` section.
        tokens: the run's `tokens` section.
        device: where the network is.

    Attributes:
        network: what trains; the loop may replace it by its wrapped form.
        bare_network: the model of transformers itself.
        adapter_targets: a regular expression for the layers that LoRA goes on by default.
        notes: what was decided while loading, for the run's opening lines.
        counts: what had to be done to examples so far: images shrunk, answers cut, seams merged.
        mode: how candidates are laid out and whether the vision pass is shared.
    """

    modality = "language"
    latent_shape: tuple[int, ...] = ()

    def __init__(
        self,
        family: str,
        network: LanguageNetwork,
        reader: DialogueReader,
        settings: "ModelConfig",
        tokens: "TokensConfig",
        *,
        device: torch.device | str,
    ) -> None:
        self.family, self.reader, self.settings, self.tokens = family, reader, settings, tokens
        self.traits: VlmTraits = reader.traits
        self.device = torch.device(device)
        self.bare_network: Any = network.model
        self.network: nn.Module = network
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.adapter_targets = self.traits.adapter_targets(
            self.bare_network, vision=tokens.train_vision, projector=tokens.train_projector
        )
        self.mode: Mode = choose_mode(self)
        self.notes.append(self.mode.note)

    # --- data -----------------------------------------------------------------------------------------------

    def limit_images(self, limits: ImageLimits) -> None:
        """Refuse images beyond other sizes than the usual ones."""
        self.reader = replace(self.reader, media=replace(self.reader.media, limits=limits))

    def show_rows(self, table: Any) -> None:
        """Tell which rows the run reads, for corruptions that show another row's picture."""
        others = OtherRows(table, self.reader.media)
        self.reader = replace(self.reader, spoilt=replace(self.reader.spoilt, others=others))

    def example(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Prompts, media and answers of a row as tokens; on the CPU, decided by `key`.

        Raises:
            RowError: it cannot be read, or does not fit.
        """
        return self.reader(row, key=key)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch of readable examples, as a flat dictionary of tensors."""
        if self.reader.spoilt.further:  # which of their versions is laid out, the policy of the step says
            return {"to_choose_from": tuple(examples)}
        return self.laid_out(examples, self.mode)

    def laid_out(self, examples: Sequence[Mapping[str, Any]], mode: Mode) -> dict[str, Any]:
        """A micro-batch laid out in a mode of one's choice."""
        counts: Counter[str] = Counter()
        for example in examples:
            counts.update(example["counts"])
        rows = lay_out(examples, self.traits.join, packed=mode.packed, native=not mode.shared)
        return {**rows, "counts": dict(counts)}

    # --- encoding -------------------------------------------------------------------------------------------

    @property
    def vision_is_frozen(self) -> bool:
        """Whether features can be computed beforehand and serve policy and reference alike."""
        return not (self.tokens.train_vision or self.tokens.train_projector)

    @torch.no_grad()
    def encode(self, collated: Mapping[str, Any], keys: RowKeys | None = None) -> Encoded:
        """A micro-batch on the device, its distinct media seen once where tower and projector are frozen."""
        del keys  # everything random was drawn with the example
        if "round" in collated:
            return self._not_laid_out(collated["round"])
        if "to_choose_from" in collated:
            from mmalign.vlm.close_to_far import encode_chosen

            return encode_chosen(self, collated["to_choose_from"])
        return self.encode_laid_out(collated)

    @torch.no_grad()
    def encode_laid_out(self, collated: Mapping[str, Any]) -> Encoded:
        """A micro-batch that `laid_out` made, on the device."""
        self.counts.update(collated["counts"])
        moved = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in collated.items()
        }
        inputs = self._seen(inputs_of(moved))
        if inputs.aside is not None:
            inputs = replace(inputs, aside=self._seen(inputs.aside))
        return Encoded(
            clean=moved["clean"],
            element_mask=moved["mask"],
            context=inputs,
            recorded={
                name.removeprefix("recorded."): value
                for name, value in moved.items()
                if name.startswith("recorded.")
            },
        )

    def _seen(self, inputs: VlmInputs) -> VlmInputs:
        """The inputs with features in the place of media, where those are constants."""
        if not self.vision_is_frozen or inputs.native or not inputs.media:
            return inputs
        features = encode_media(self.traits, self.traits.base(self.bare_network), inputs)
        return replace(inputs, features=features, media={})

    def _not_laid_out(self, examples: Sequence[Mapping[str, Any]]) -> Encoded:
        """Rows of a round, to which answers are going to be written."""
        from mmalign.vlm.answer_rounds import RoundRows

        width = max(len(example["row"].candidates) for example in examples)
        none = torch.zeros(len(examples), width, 0, device=self.device)
        return Encoded(none, none, RoundRows(tuple(examples)))

    def rounds(self, rollout: "AnswerRolloutConfig", *, kind: str) -> "RoundReader":
        """What reads the rows of a run that learns from its own answers, in a loader worker."""
        from mmalign.vlm.answer_rounds import RoundReader

        room = min(rollout.max_new_tokens or 1, self.reader.max_completion_length or 2**20)
        return RoundReader(self.reader, room, pairs=kind == "mixed", asks=kind != "bias_driven")

    def collectors(
        self,
        rollout: "AnswerRolloutConfig",
        *,
        kind: str,
        reward: "AnswerReward | None",
        row: Callable[[int], PreferenceRow],
        seed: int,
    ) -> "AnswerMakers":
        """What makes pairs of the policy's own answers. See `mmalign.train.model.WritingModel`."""
        from mmalign.vlm.answer_collectors import answer_makers

        return answer_makers(self, rollout, kind=kind, reward=reward, row=row, seed=seed)

    # --- the network ----------------------------------------------------------------------------------------

    def repeated_blocks(self, network: nn.Module) -> list[nn.Module]:
        """What `model.compile` compiles: layers of the language model."""
        return list(self.traits.decoder(network.model).layers)

    def policy(self, network: nn.Module) -> VlmPolicy:
        """A network of this model as the token likelihood calls it."""
        return VlmPolicy(network)

    def trains(self, name: str) -> bool:
        """Whether a parameter trains under full fine-tuning, by its name."""
        part = self.traits.part_of(name)
        wanted = {"vision": self.tokens.train_vision, "projector": self.tokens.train_projector}
        return wanted.get(part, True)

    def parameter_groups(self, named: Mapping[str, nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """Parameters by what they belong to: "language", "projector", "vision"; for learning rates."""
        groups: dict[str, list[nn.Parameter]] = {"language": [], "projector": [], "vision": []}
        for name, parameter in named.items():
            groups[self.traits.part_of(name)].append(parameter)
        return groups

    # --- generation, saving, identity -----------------------------------------------------------------------

    def generate(
        self,
        rows: Sequence[PreferenceRow],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 8,
        network: nn.Module | None = None,
    ) -> list[str]:
        """Answers to the prompts of rows, by whatever adapters are on now. See `mmalign.vlm.generation`."""
        from mmalign.vlm.generation import generate

        return generate(
            self,
            rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            network=network,
        )

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter as peft reads it onto the model of transformers; returns the folder."""
        from mmalign.vlm.saving import save_adapter

        return save_adapter(self, folder)

    def save_model(self, folder: str | Path) -> Path:
        """Write the whole model with its processor, adapters merged in; returns the folder."""
        from mmalign.vlm.saving import save_model

        return save_model(self, folder)

    def describe(self) -> dict[str, str]:
        """What log-probabilities of rows depend on besides the weights, for fingerprints of stored ones."""
        tokens = self.tokens.model_dump(mode="json", exclude={"packing", "share_vision", "head_chunk"})
        template = getattr(self.reader.traits.processor, "chat_template", None)
        return {
            "family": self.family,
            "source": self.settings.source,
            "revision": str(self.settings.revision),
            "tokens": fingerprint(tokens),
            "template": fingerprint(template, self.reader.seam.lead, self.reader.seam.end),
            "dtype": str(self.bare_network.dtype),
        }
