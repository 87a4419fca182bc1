"""Chat models that see: loaded strictly, asked in batches, read by logits or by what they write.

Three silent errors are made impossible here. A checkpoint whose keys do not fit never leaves a part random.
A question's numbers do not depend on its batch mates: rows are padded on the left, and rows whose tensors
cannot simply be stacked are run apart. Sampling settings that checkpoints bring along play no part: answers
are greedy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, RowError, explain
from mmalign.rewards.card import Weights
from mmalign.rewards.chat_batches import RepetitionPenalty, Row, stacks
from mmalign.rewards.rubrics import defuse
from mmalign.rewards.sample import Media, Sample, to_image
from mmalign.rewards.video_files import sampled_frames
from mmalign.rewards.weights import hashes, resolve

__all__ = [
    "MODEL_FILES",
    "ChatModel",
    "Row",
    "load_chat_model",
    "sample_media",
    "within",
    "without_special_tokens",
]

MODEL_FILES = ("*.j*", "*.safetensors")
"""What a chat model's folder must hold: configuration, tokenizer, chat template (.json, .jinja), weights."""

Shown = tuple[str, Any]
"""("image", picture) or ("video", pictures)."""


def within(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture, scaled down (bicubic, its aspect ratio kept) to at most `max_pixels` pixels."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    factor = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def without_special_tokens(text: str, tokenizer: Any) -> str:
    """The text with every special or added token of the tokenizer broken by a space.

    A prompt that holds `<|Reward|>` or `<image>` would otherwise be read as that token.
    """
    broken, _ = defuse(text, [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()])
    return broken


def load_chat_model(
    *,
    weights: str | Path | None,
    model: str | None,
    reward: str,
    device: str | torch.device,
    dtype: torch.dtype,
    max_pixels: int | None = None,
    thinking: bool = False,
) -> "ChatModel":
    """A chat model from a folder or the hub.

    Args:
        weights: folder; None = `model`.
        model: a hub id (`repository` or `repository@revision`), or a folder.
        reward: who asks, for messages.
        device: where it stands.
        dtype: of its weights.
        max_pixels: larger pictures are scaled down to it; None = as they are.
        thinking: whether templates that can open a chain of thought do.

    Raises:
        ConfigError: neither is given.
        CheckpointError: the files are nowhere, or do not fit the network.
    """
    if weights is None and model is None:
        message = explain(
            f"reward {reward}",
            got=None,
            expected="a vision-language model",
            do="Pass model='repository' (a hub id) or weights='folder'.",
        )
        raise ConfigError(message)
    if weights is None and model is not None and Path(model).is_dir():
        weights = model
    repository, _, revision = (model or str(weights)).partition("@")
    described = Weights(repository, MODEL_FILES, revision=revision or None)
    folder = resolve(described, folder=weights, reward=reward)
    return ChatModel(folder, device=device, dtype=dtype, max_pixels=max_pixels, thinking=thinking)


class ChatModel:
    """An image-text-to-text model of transformers with its processor.

    Args:
        folder: as `save_pretrained` of model and processor writes it; only safetensors are read.
        device: where it stands.
        dtype: of its weights.
        max_pixels: larger pictures are scaled down to it; None = as they are.
        thinking: value of the chat template's `enable_thinking`; templates without it do not notice.

    Raises:
        CheckpointError: a part of the network is not in the checkpoint, or the other way round.
        ConfigError: the model has no chat template.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_pixels: int | None = None,
        thinking: bool = False,
    ) -> None:
        from transformers import AutoProcessor

        self.folder = Path(folder)
        self.device = torch.device(device)
        self.max_pixels = max_pixels
        self.thinking = thinking
        self.processor = AutoProcessor.from_pretrained(str(folder))
        self.tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template):
            message = explain(
                str(folder),
                got="[no chat template]",
                expected="a model that is asked by chat",
                do="Put its chat_template.jinja into the folder.",
            )
            raise ConfigError(message)
        self.network = _load_strictly(self.folder, dtype).to(self.device).eval().requires_grad_(False)
        self.repetition_penalty = float(self.network.generation_config.repetition_penalty or 1.0)
        self.pad = self._pad_token()
        self.network.generation_config = self._greedy(1)

    def _pad_token(self) -> int:
        pad = self.tokenizer.pad_token_id
        ends = self._ends()
        return int(pad if pad is not None else ends[0] if ends else 0)

    def _ends(self) -> list[int]:
        found = getattr(self, "_end_tokens", None)
        if found is None:
            named = self.network.generation_config.eos_token_id
            ends = [] if named is None else [named] if isinstance(named, int) else list(named)
            found = ends or [token for token in [self.tokenizer.eos_token_id] if token is not None]
            self._end_tokens = found
        return list(found)

    def _greedy(self, tokens: int) -> Any:
        """A generation config that inherits nothing from the checkpoint but its end tokens."""
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
            pad_token_id=self.pad,
            eos_token_id=self._ends() or None,
            return_dict_in_generate=True,
        )

    def settings(self) -> dict[str, Any]:
        """What of the model can change a value, as hashes and options."""
        return {
            "weights": dict(hashes(self.folder, ("*.safetensors",))),
            "configuration": dict(hashes(self.folder, ("*.j*", "tokenizer.model", "*.txt"))),
            "preprocessing": {
                "image_processor": type(self.processor.image_processor).__name__,
                "max_pixels": self.max_pixels,
            },
            "thinking": self.thinking,
        }

    # ---------------------------------------------------------------------------- questions

    def safe(self, text: str) -> str:
        """The text with the tokenizer's special tokens broken by a space."""
        return without_special_tokens(text, self.tokenizer)

    def shown(self, media: Media | Sequence[Media] | None, *, where: str) -> Shown:
        """What the model is shown for a picture, or for a sequence of pictures (a clip).

        Raises:
            RowError: nothing is there (`missing_media`), or it cannot be read.
        """
        if media is None or (
            isinstance(media, Sequence) and not isinstance(media, str | bytes) and not media
        ):
            expected = "a picture, or the pictures of a clip"
            raise RowError(explain(where, got=None, expected=expected), reason="missing_media")
        if isinstance(media, Sequence) and not isinstance(media, str | bytes):
            frames = [to_image(frame, where=f"{where}[{place}]") for place, frame in enumerate(media)]
            return ("video", [within(frame, self.max_pixels) for frame in frames])
        return ("image", within(to_image(media, where=where), self.max_pixels))

    def question(self, text: str, shown: Sequence[Shown] = ()) -> dict[str, Tensor]:
        """One user turn as tensors: what is shown, then the text, then the start of the answer."""
        content: list[dict[str, Any]] = [{"type": kind, kind: media} for kind, media in shown]
        content.append({"type": "text", "text": text})
        encoded = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=self._clip_settings() if any(kind == "video" for kind, _ in shown) else {},
            **self._template_variables(),
        )
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}

    def _clip_settings(self) -> dict[str, Any]:
        """Every given frame is shown; frames are capped in size as the publisher's reader caps them."""
        capped = hasattr(self.processor.video_processor, "cap_pixels_per_frame")
        return {
            "videos_kwargs": {
                "do_sample_frames": False,
                **({"cap_pixels_per_frame": True} if capped else {}),
            }
        }

    def _template_variables(self) -> dict[str, Any]:
        template = str(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template)
        return {"enable_thinking": self.thinking} if "enable_thinking" in template else {}

    def token(self, word: str) -> int:
        """The id of a word that must be one token.

        Raises:
            ConfigError: it is none, or several: one row of logits would not be its probability.
        """
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            got = f"[{self.tokenizer.convert_ids_to_tokens(ids)}]"
            where = f"{self.folder.name} token of {word!r}"
            do = "Take another answer word, or a mode that generates."
            raise ConfigError(explain(where, got=got, expected="one token", do=do))
        return int(ids[0])

    # ---------------------------------------------------------------------------- batches

    def logits(
        self, rows: Sequence[Row], answer: Sequence[int] = (0,)
    ) -> Float[Tensor, "row step vocabulary"]:
        """Raw float32 logits of each token of an answer, the answer's earlier tokens given (teacher forcing).

        Row t holds log P(. | question, answer[:t]) up to a constant. The last token is never fed: an answer
        of one token costs one pass over the question.
        """
        found: list[Tensor | None] = [None] * len(rows)
        for places, tensors in stacks(rows, pad=self.pad, device=self.device):
            start = tensors["input_ids"].shape[1]
            config = self._greedy(len(answer))
            config.update(eos_token_id=None, output_logits=True, use_cache=len(answer) > 1)

            def given(_row: int, ids: Tensor, start: int = start) -> list[int]:
                return [answer[len(ids) - start]]

            said = self.network.generate(**tensors, generation_config=config, prefix_allowed_tokens_fn=given)
            steps = torch.stack([step.float() for step in said.logits], dim=1)
            for place, row in zip(places, steps, strict=True):
                found[place] = row
        return torch.stack([row for row in found if row is not None])

    def write(self, rows: Sequence[Row], *, max_new_tokens: int) -> list[str]:
        """Greedy answers.

        The checkpoint's repetition penalty is kept (it belongs to how its numbers were published); padding
        does not count as a repetition. Temperature and the like are not.
        """
        from transformers import LogitsProcessorList

        found = [""] * len(rows)
        for places, tensors in stacks(rows, pad=self.pad, device=self.device):
            start = tensors["input_ids"].shape[1]
            processors = LogitsProcessorList()
            if self.repetition_penalty != 1.0:
                processors.append(
                    RepetitionPenalty(self.repetition_penalty, tensors["attention_mask"], self.pad)
                )
            said = self.network.generate(
                **tensors, generation_config=self._greedy(max_new_tokens), logits_processor=processors
            )
            texts = self.tokenizer.batch_decode(said.sequences[:, start:], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                found[place] = text
        return found


def _load_strictly(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText

    network, report = AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    names = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "other shape"}
    problems = [
        f"{word}: {', '.join(sorted(map(str, report[key]))[:6])}"
        for key, word in names.items()
        if report.get(key)
    ]
    if problems:
        message = (
            f"{folder}: the weights do not fit the network ({'; '.join(problems)}); parts would be random. "
            f"Use a folder that `save_pretrained` of this transformers version wrote, or the hub's files."
        )
        raise CheckpointError(message)
    return network


def sample_media(sample: Sample) -> Media | Sequence[Media] | None:
    """The picture of a sample, or else the pictures of its clip, two a second where it is a file.

    Raises:
        MissingExtraError: a video file, and PyAV is not installed.
        RowError: a video file that cannot be read, or has one frame.
    """
    if sample.image is None and sample.frames is None and sample.video is not None:
        return list(sampled_frames(sample.video))
    return sample.frames if sample.image is None else sample.image
