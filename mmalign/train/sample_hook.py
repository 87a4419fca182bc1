"""Samples while a run trains: pictures, clips, sounds or answers of the weights as they are."""

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mmalign.sharded import is_sharded
from mmalign.train.adapters import Trainables
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.config import ResolvedRun
from mmalign.train.distributed.networks import for_sampling
from mmalign.train.model import TrainedModel, denoising
from mmalign.train.sample_answers import SampleAnswers
from mmalign.train.sample_clips import SampleClips
from mmalign.train.sample_sounds import SampleSounds
from mmalign.train.samples import SampleGrids
from mmalign.train.token_sections import TokenRunConfig
from mmalign.train.tracking import Tracking
from mmalign.train.video_sections import VideoRunConfig

__all__ = ["sample_hook"]


def sample_hook(
    run: ResolvedRun,
    accelerator: Accelerator,
    model: TrainedModel,
    trainables: Trainables,
    tracking: Tracking,
    folder: Path,
) -> Callable[[int], None]:
    """Make pictures, sounds or answers every so many steps, on the main process, by the bare network.

    Of a sharded network every process has to make them; those of the others go nowhere.
    """
    config = run.config
    is_main = accelerator.is_main_process
    together = any(is_sharded(value) for value in trainables.parameters.values())
    if together and not is_main:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    written = isinstance(config, TokenRunConfig)
    settings = config.answers if isinstance(config, TokenRunConfig) else config.samples

    def hook(step: int) -> None:
        is_due = step == config.train.steps or (settings.every is not None and step % settings.every == 0)
        if not (settings.prompts and is_due and (is_main or together)):
            return
        with _bare(model, trainables.network), for_sampling(trainables.network):
            path = maker.write(step)
        if written:
            return
        if config.media.cache is not None:
            denoising(model).release_encoders()  # the plan of a cached run has no room for them
        if path.suffix == ".png" and is_main:
            tracking.log_picture("samples", path, step)

    maker: SampleGrids | SampleSounds | SampleClips | SampleAnswers
    if isinstance(config, TokenRunConfig):
        maker = SampleAnswers(model, trainables, config.answers, folder)
    elif isinstance(config, AudioRunConfig):
        maker = SampleSounds(denoising(model), trainables, config.samples, folder)
    elif isinstance(config, VideoRunConfig):
        maker = SampleClips(denoising(model), trainables, config.samples, folder)
    else:
        maker = SampleGrids(denoising(model), trainables, config.samples, folder)
    return hook


@contextlib.contextmanager
def _bare(model: TrainedModel, network: nn.Module) -> Iterator[None]:
    prepared, model.network = model.network, network
    try:
        yield
    finally:
        model.network = prepared
