"""Tiny CLIP-FlanT5: T5, CLIP's vision tower and the projector between them, in their published files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["CHECKPOINTS", "OTHER_OPTIONS", "write_clip_flant5"]


def _t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted({chr(number) for number in range(33, 127)} | {"\u2581"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581Yes", -1.0), ("\u2581No", -1.0)]
    pieces += [(letter, -5.0 - 0.01 * number) for number, letter in enumerate(letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def write_clip_flant5(folder: str | Path, seed: int = 0, *, with_tower: bool = True) -> Path:
    """CLIP-FlanT5-XXL, Flan-T5's tokenizer and CLIP's tower, each in its own folder. Returns theirs."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    folder = Path(folder)
    tokenizer = _t5_tokenizer()
    tokenizer.save_pretrained(str(folder / "flan-t5-xxl"))
    model_folder = folder / "clip-flant5-xxl"
    vision_folder = folder / "clip-vit-large-patch14-336"
    model_folder.mkdir(parents=True, exist_ok=True)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, language = CLIPVisionModel(vision), T5ForConditionalGeneration(text)
        first, second = torch.nn.Linear(24, 16), torch.nn.Linear(16, 16)
    vision.save_pretrained(str(vision_folder))
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**size).save_pretrained(str(vision_folder))
    own = {name: value for name, value in language.state_dict().items() if ".embed_tokens." not in name}
    state = {**own, "embed_tokens.weight": own["shared.weight"].clone()}
    state.update({"encoder.embed_tokens.weight": own["shared.weight"].clone()})
    for place, layer in ((0, first), (2, second)):
        state.update({f"mm_projector.{place}.{name}": value for name, value in layer.state_dict().items()})
    seen = {f"vision_model.{name}": value for name, value in tower.state_dict().items()}
    # The published tower file is the whole of CLIP; only its vision half is ours.
    torch.save({**seen, "logit_scale": torch.tensor(2.0)}, vision_folder / "pytorch_model.bin")
    if with_tower:
        state.update({f"vision_tower.vision_tower.{name}": value for name, value in seen.items()})
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save(
            {name: state[name] for name in part}, model_folder / f"pytorch_model-{number:05d}-of-00002.bin"
        )
    extra = {"model_type": "clip_t5", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (model_folder / "config.json").write_text(json.dumps({**text.to_dict(), **extra}))
    return folder


CHECKPOINTS: dict[str, Callable[..., Path]] = {"vqascore_flant5": write_clip_flant5}

OTHER_OPTIONS: dict[str, dict[str, Any]] = {"vqascore_flant5": {"question": "Is this {}?"}}
