"""What to do when a device runs out of memory."""

from mmalign.train.config import ResolvedRun
from mmalign.train.token_sections import TokensConfig, tokens_of

__all__ = ["out_of_memory"]

_SIZES = {
    "image": "image.resolution",
    "audio": "audio.duration",
    "video": "video.num_frames, or video.height and video.width",
}


def out_of_memory(run: ResolvedRun) -> str:
    """What a run that ran out of memory is told: which settings would help, largest effect first."""
    config = run.config
    helps = []
    if config.train.batch_size > 1:
        helps.append(
            f"train.batch_size={config.train.batch_size // 2} with "
            f"train.accumulation={config.train.accumulation * 2} (same result, about half the activations)"
        )
    if not config.train.split_backward and tokens_of(config) is None:
        helps.append(
            "train.split_backward=true (the same gradients, one candidate at a time: about half of a pair's "
            "activations, one more forward pass of one side)"
        )
    if config.model.gradient_checkpointing is not True:
        helps.append(
            "model.gradient_checkpointing=true (about 90 % of the activations, 15 to 20 % more time)"
        )
    if not config.model.gradient_checkpointing:
        helps.append(
            "model.gradient_checkpointing=selective (a fifth to half of the activations, no product twice)"
        )
    if config.adapter.kind == "none":
        helps.append("adapter.kind=lora (12 bytes per network weight of optimiser state and master weights)")
        if config.reference.kind in ("auto", "frozen"):
            helps.append("reference.kind=stored or reference.offload=true (the second copy of the network)")
        if config.train.optimizer == "adamw":
            helps.append("train.optimizer=adamw_8bit (6 bytes per network weight)")
    if (tokens := tokens_of(config)) is not None:
        helps += _smaller_dialogues(tokens)
    elif config.media.cache is None:
        helps.append(f"{config.media_name}.cache from `mmalign data cache` (VAE and text encoders)")
    if config.train.mixed_precision == "no":
        helps.append("train.mixed_precision=bf16 (half of the frozen weights and activations)")
    listing = "\n  ".join(helps) or f"a smaller {_SIZES[config.media_name]}"
    return f"out of memory on the device. Settings that help, largest first:\n  {listing}"


def _smaller_dialogues(tokens: TokensConfig) -> list[str]:
    """What shortens the rows of a language model, or the tiles of its logits."""
    pixels = "" if tokens.max_pixels is None else f"={tokens.max_pixels // 2}"
    frames = "num_frames" if tokens.num_frames is not None else "max_frames"
    half = max((tokens.num_frames or tokens.max_frames) // 2, 1)
    return [
        f"a smaller tokens.max_pixels{pixels}, or tokens.{frames}={half} for videos (fewer visual tokens)",
        "a smaller tokens.max_length or tokens.max_completion_length (long answers lose their end)",
        "tokens.head_chunk=256 (positions whose logits exist together; the same result)",
    ]
