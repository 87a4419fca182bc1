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
        settings: seed, steps, guidance, and the duration of clips whose prompts say none.
        device: where it runs.

    Raises:
        ConfigError: nothing is there, or it makes no sounds.
    """
    from mmalign.audio.trained import load_base, load_trained, recognise

    is_run = run_of(spec.source) is not None
    if is_run:
        loaded = load_trained(spec.source, device=device)
    else:
        # One length for all clips has to be known before; other models are asked clip by clip.
        one = settings.duration if recognise(spec.source).model.one_duration else None
        loaded = load_base(spec.source, device=device, duration=one)
    model = loaded.model
    usual = model.duration if settings.duration is None else settings.duration
    num_steps = settings.num_steps or loaded.num_steps
    scale = loaded.guidance_scale if settings.guidance_scale is None else settings.guidance_scale

    def sound(jobs: Sequence[Job]) -> list[bytes]:
        made: dict[str, bytes] = {}
        asked = {job.sample_id: job.duration() or usual for job in jobs}
        for seconds in sorted(set(asked.values())):
            part = [job for job in jobs if asked[job.sample_id] == seconds]
            clips = model.sample(
                [job.item.prompt for job in part],
                seed=settings.seed,
                num_steps=num_steps,
                guidance_scale=scale,
                scheduler=settings.scheduler,
                batch_size=len(part),
                keys=[job.sample_id for job in part],
                duration=None if seconds == model.duration else model.window_of(seconds),
            )
            for job, clip in zip(part, clips, strict=True):
                samples = clip.samples[:, : round(seconds * clip.sampling_rate)]
                made[job.sample_id] = encode_audio(samples, clip.sampling_rate, container="wav")
        return [made[job.sample_id] for job in jobs]

    recipe = recipe_of(settings, num_steps=num_steps, guidance_scale=scale)
    recipe |= {
        "format": "wav, 16 bits",
        "duration": usual,
        "sampling_rate": model.sampling_rate,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    painter = Painter(sound, recipe, "wav")
    if is_run and spec.weights == "base":
        with loaded.base_weights():
            yield painter
    else:
        yield painter
