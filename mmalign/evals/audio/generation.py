"""Models of sound as the first stage of an evaluation uses them: jobs to WAV files from equal noise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmalign.data.audio_media import encode_audio
from mmalign.evals.generation import Painter, recipe_of
from mmalign.evals.jobs import Job
from mmalign.evals.model_identity import run_of
from mmalign.evals.suite import GenerationConfig, ModelSpec

__all__ = ["sound_painter"]


@contextmanager
def sound_painter(spec: ModelSpec, settings: GenerationConfig, device: str | None) -> Iterator[Painter]:
    """Load a model of sounds, or the base side of a run.

    The noise of a clip comes from (seed, prompt id, copy) as that of a picture; files are 16-bit WAV.

    Args:
        spec: which model.
        settings: seed, steps and guidance.
        device: where it runs.

    Raises:
        ConfigError: nothing is there, or it makes no sounds.
    """
    from mmalign.audio.trained import load_base, load_trained

    is_run = run_of(spec.source) is not None
    loaded = load_trained(spec.source, device=device) if is_run else load_base(spec.source, device=device)
    num_steps = settings.num_steps or loaded.num_steps
    scale = loaded.guidance_scale if settings.guidance_scale is None else settings.guidance_scale

    def sound(jobs: Sequence[Job]) -> list[bytes]:
        clips = loaded.model.sample(
            [job.item.prompt for job in jobs],
            seed=settings.seed,
            num_steps=num_steps,
            guidance_scale=scale,
            scheduler=settings.scheduler,
            batch_size=len(jobs),
            keys=[job.sample_id for job in jobs],
        )
        return [encode_audio(clip.samples, clip.sampling_rate, container="wav") for clip in clips]

    recipe = recipe_of(settings, num_steps=num_steps, guidance_scale=scale)
    recipe |= {
        "format": "wav, 16 bits",
        "duration": loaded.model.duration,
        "sampling_rate": loaded.model.sampling_rate,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    painter = Painter(sound, recipe, "wav")
    if is_run and spec.weights == "base":
        with loaded.base_weights():
            yield painter
    else:
        yield painter
