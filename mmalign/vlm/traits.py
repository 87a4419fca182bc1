"""What differs between families of vision-language models, with the answers that most of them share.

A family file derives from `VlmTraits`. Everything here is decided by configs and processors: an object of it
holds no weights and can be sent to loader workers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.batch import Message
from mmalign.errors import ShapeError, explain
from mmalign.vlm.flex import block_mask
from mmalign.vlm.inputs import Features, MediaKind, Medium, VlmInputs
from mmalign.vlm.packing import visible
from mmalign.vlm.prompts import Seam

__all__ = ["Settings", "VlmTraits"]

Settings = dict[str, Any]
"""Keyword arguments of a processor's image or video part."""


class VlmTraits:
    """One family, as its config and processor describe the model at hand.

    Args:
        config: the model's.
        processor: the model's; of a language model alone, its tokenizer.

    Attributes:
        model_types: `config.model_type` of the models it loads.
        sees: kinds of media it takes.
        language_part: name of the decoder inside the model.
        vision_parts: name parts of modules that see.
        projector_parts: name parts of modules between vision and language; looked for first.
        first_position: position of the first token.
        one_text: prompt and answer are encoded as one text; False where the processor encodes them apart.
        num_frames: frames of a video, evenly spaced, where the run does not say; None: by `fps`.
        fps: frames per second, where the run does not say.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    sees: ClassVar[tuple[MediaKind, ...]] = ("image",)
    language_part: ClassVar[str] = "language_model"
    vision_parts: ClassVar[tuple[str, ...]] = ("vision_tower", "vision_model", "visual", "image_newline")
    projector_parts: ClassVar[tuple[str, ...]] = ("multi_modal_projector", "connector")
    first_position: ClassVar[int] = 0
    one_text: ClassVar[bool] = True
    num_frames: ClassVar[int | None] = 8
    fps: ClassVar[float] = 2.0

    def __init__(self, config: Any, processor: Any) -> None:
        self.config, self.processor = config, processor
        self.text_config = config.get_text_config()

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; of a language model alone, the processor is one."""
        return getattr(self.processor, "tokenizer", self.processor)

    # --- tokens ---------------------------------------------------------------------------------------------

    @property
    def media_ids(self) -> dict[MediaKind, int]:
        """Token ids of the placeholders that features replace."""
        found: dict[MediaKind, int] = {}
        names: dict[MediaKind, tuple[str, ...]] = {
            "image": ("image_token_id", "image_token_index"),
            "video": ("video_token_id", "video_token_index"),
        }
        for kind, attributes in names.items():
            value = next(
                (v for name in attributes if (v := getattr(self.config, name, None)) is not None), None
            )
            if value is not None:
                found[kind] = int(value)
        return found

    def placeholder(self, kind: MediaKind) -> str:
        """What the chat template writes for a medium, before the processor expands it."""
        return str(getattr(self.processor, f"{kind}_token"))

    def feature_kind(self, kind: MediaKind) -> MediaKind:
        """Which placeholder's features a medium becomes: a family may see a video as pictures."""
        return kind

    def kinds(self, ids: Int[Tensor, " position"]) -> Int[Tensor, " position"]:
        """0 for text, 1 for placeholders of images, 2 of videos."""
        kinds = torch.zeros_like(ids)
        for number, kind in ((1, "image"), (2, "video")):
            token = self.media_ids.get(kind)  # type: ignore[call-overload]
            if token is not None:
                kinds[ids == token] = number
        return kinds

    def positions(
        self, ids: Int[Tensor, " position"], kinds: Int[Tensor, " position"], media: Sequence[Medium]
    ) -> tuple[Int[Tensor, "axis position"], int]:
        """Positions of a prompt, and that of the token after it."""
        del kinds, media
        first, number = self.first_position, ids.shape[0]
        return torch.arange(first, first + number).unsqueeze(0), first + number

    def blocks(
        self, ids: Int[Tensor, " position"], kinds: Int[Tensor, " position"]
    ) -> Int[Tensor, " position"] | None:
        """Numbers of blocks whose tokens see each other both ways, -1 outside; None in causal models."""
        del ids, kinds
        return None

    def render(self, messages: Sequence[Message]) -> str | None:
        """The prompt's text where the family has no chat template of its own; None: by the template."""
        del messages
        return None

    def seam(self) -> Seam | None:
        """What stands between prompt and answer without a chat template; None: read off the template."""
        return None

    @property
    def adds_beginning(self) -> bool:
        """Whether a text that does not begin with the token of the beginning gets what the tokenizer adds."""
        return True

    # --- media ----------------------------------------------------------------------------------------------

    def image_settings(self, *, min_pixels: int | None, max_pixels: int | None) -> Settings:
        """Arguments of the processor that keep an image within these sizes.

        `max_pixels` is none of them: pictures are shrunk to it before the processor sees them, unless `size`
        says how the processor itself keeps to it.
        """
        del min_pixels
        return {} if max_pixels is None else {"max_pixels": max_pixels}

    def smaller(self, settings: Settings, share: float, largest: int) -> Settings | None:
        """Settings under which images take about `share` of the tokens they take now; None at the end.

        Args:
            settings: those of now.
            share: in (0, 1).
            largest: tokens that the largest medium takes now.
        """
        del settings, share, largest
        return None

    def alone(self, number: int) -> bool:
        """Whether images of a row with `number` of them are processed one by one."""
        del number
        return True

    def one_of(self, tensors: Mapping[str, Tensor], place: int, num_tokens: int) -> dict[str, Tensor]:
        """The tensors of one image among several that were processed together."""
        del num_tokens
        return {name: value[place : place + 1] for name, value in tensors.items()}

    def cleaned(self, kind: MediaKind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a processor's output that the vision tower reads."""
        del kind
        return dict(tensors)

    def group(self, medium: Medium) -> tuple[int, ...]:
        """Media with equal groups can be encoded together."""
        return tuple(medium.tensors["pixel_values_videos"].shape[1:]) if medium.kind == "video" else ()

    def together(self, kind: MediaKind, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of several media of one group as the vision tower takes them."""
        del kind
        return {name: torch.cat([tensors[name] for tensors in media]) for name in media[0]}

    def join(
        self, kind: MediaKind, media: Sequence[Medium], whole: bool = False
    ) -> tuple[list[Mapping[str, Tensor]], list[int]]:
        """Groups of tensors for the vision tower, and the place of each medium's features among all.

        Args:
            kind: of all of them.
            media: in the order shown.
            whole: one group in that order, for the model's own forward.

        Raises:
            ShapeError: media of several shapes cannot be one group.
        """
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, medium in enumerate(media):
            numbers.setdefault(() if whole else self.group(medium), []).append(number)
        begins, begin = [0] * len(media), 0
        for members in numbers.values():
            for number in members:
                begins[number], begin = begin, begin + media[number].num_tokens
        if whole and kind == "video" and len({self.group(medium) for medium in media}) > 1:
            message = explain(
                "videos of one micro-batch",
                got="[several numbers of frames or sizes]",
                expected="one, for the model's own forward",
                do="Set train.batch_size 1, or tokens.num_frames.",
            )
            raise ShapeError(message)
        groups = [
            self.together(kind, [media[number].tensors for number in members]) for members in numbers.values()
        ]
        return list(groups), begins

    def features(self, base: Any, kind: MediaKind, tensors: Mapping[str, Tensor]) -> Features:
        """What the tower and the projector make of one group of media."""
        encode = base.get_image_features if kind == "image" else base.get_video_features
        return rows_of(encode(**tensors, return_dict=True))

    # --- the network ----------------------------------------------------------------------------------------

    def base(self, model: Any) -> Any:
        """The model without its head."""
        return model.model

    def decoder(self, model: Any) -> Any:
        """The language model without its head."""
        return getattr(self.base(model), self.language_part)

    @property
    def softcap(self) -> float | None:
        """Of the head's logits."""
        return None

    @property
    def scale(self) -> float:
        """Of the head's logits."""
        return 1.0

    def part_of(self, name: str) -> str:
        """What a parameter or module belongs to, by its name: language, projector or vision."""
        parts = name.split(".")
        if any(part in self.projector_parts for part in parts):
            return "projector"
        return "vision" if any(part in self.vision_parts for part in parts) else "language"

    def adapter_targets(self, model: nn.Module, *, vision: bool, projector: bool) -> str:
        """A regular expression for the full names of the linear layers that LoRA goes on.

        Linear layers of the decoder; of tower and projector only when asked. The head is never among them.
        """
        wanted = {"language", *(["vision"] if vision else []), *(["projector"] if projector else [])}
        decoder = f".{self.language_part}."
        places: dict[str, set[str]] = {}
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            part, path = self.part_of(name), f".{name}"
            if part not in wanted or (part == "language" and decoder not in path):
                continue
            parents = (self.language_part,) if part == "language" else self._names(part)
            parent = next(item for item in reversed(name.split(".")) if item in parents)
            places.setdefault(parent, set()).add(name.rsplit(".", 1)[-1])
        unwanted = () if projector else self.projector_parts  # which may lie inside the tower
        options = [
            rf"{re.escape(parent)}\.(?:.*\.)?(?:{'|'.join(sorted(map(re.escape, endings)))})"
            for parent, endings in sorted(places.items())
        ]
        refused = "".join(rf"(?!.*\b{re.escape(name)}\b)" for name in unwanted)
        return rf"{refused}(?:.*\.)?(?:{'|'.join(options)})"

    def _names(self, part: str) -> tuple[str, ...]:
        return self.projector_parts if part == "projector" else self.vision_parts

    # --- attention ------------------------------------------------------------------------------------------

    def needs_mask(self, inputs: VlmInputs) -> bool:
        """Whether the decoder's own causal attention would see too much or too little."""
        return inputs.is_packed or inputs.blocks is not None

    def masks(self, inputs: VlmInputs, *, narrow: bool = False, blocks: bool = False) -> Any:
        """What the decoder takes as its attention mask: True where a token sees another, by kind of layer.

        Args:
            inputs: rows.
            narrow: leave out queries that see exactly what comes before them.
            blocks: masks of FlexAttention, which are not narrow.
        """
        window = getattr(self.text_config, "sliding_window", None)
        kinds = set(getattr(self.text_config, "layer_types", None) or ())
        first = inputs.num_causal if narrow else 0

        def mask(window: int | None) -> Any:
            if window is not None and window >= inputs.segment.shape[1]:
                window = None
            if blocks:
                return block_mask(inputs, window=window)
            if window is None:
                return visible(inputs, first=first)
            return visible(inputs, window=window)

        if not kinds:
            return mask(window)
        made = {}
        if "full_attention" in kinds:
            made["full_attention"] = mask(None)
        if "sliding_attention" in kinds:
            made["sliding_attention"] = mask(window)
        # Decoders that know kinds of layers take a mapping; those with one kind also take its mask alone.
        return next(iter(made.values())) if len(made) == 1 else made

    def generation_arguments(self, kinds: Int[Tensor, "row position"]) -> dict[str, Tensor]:
        """Further arguments of `generate`; `kinds` of tokens as in `VlmInputs`, filled up in front."""
        del kinds
        return {}

    def native_arguments(self, inputs: VlmInputs) -> dict[str, Tensor]:
        """Further arguments of the model's own forward."""
        del inputs
        return {}

    def decoder_arguments(
        self, inputs: VlmInputs, deep: tuple[Float[Tensor, "place feature"], ...]
    ) -> dict[str, Any]:
        """Further arguments of the decoder; `deep` in the order of visual tokens over all rows."""
        del inputs, deep
        return {}


def softcap_of(config: Any) -> float | None:
    """What a config says of the head: Gemma 2 and its kin bound logits by `c tanh(x / c)`; None elsewhere."""
    value = getattr(config, "final_logit_softcapping", None)
    return None if value is None else float(value)


def rows_of(output: Any) -> Features:
    """Features of all media of a call, one row per visual token, from what a model's encoder returned."""
    values = output.pooler_output
    if isinstance(values, Tensor):
        rows = values.flatten(0, -2)
    else:
        rows = torch.cat([value.flatten(0, -2) for value in values])
    deep = getattr(output, "deepstack_features", None) or ()
    return Features(
        rows, tuple(torch.cat(list(value)) if not isinstance(value, Tensor) else value for value in deep)
    )
