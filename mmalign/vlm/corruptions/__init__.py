"""Images and videos spoilt on purpose, for methods that compare an answer beside the true and a false one.

`CORRUPTIONS` lists them by name. Everything random comes from one generator per row, so policy and reference,
and every answer of the row, see the same spoilt image. mDPO's released code draws anew in every forward pass;
here one key is one image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from PIL import Image

from mmalign.errors import ConfigError, HyperparameterError, explain, unknown_name
from mmalign.seeding import derive_seed, generator_for
from mmalign.vlm.corruptions import frames as of_frames
from mmalign.vlm.corruptions import images as of_images
from mmalign.vlm.corruptions.frames import Frames
from mmalign.vlm.corruptions.images import Record

__all__ = ["CORRUPTIONS", "Corruption", "Spoiler", "corrupt_row", "corruption"]


ImageOperator = Callable[..., tuple[Image.Image, Record]]
FrameOperator = Callable[[Frames, float, torch.Generator], tuple[Frames, Record]]


@dataclass(frozen=True)
class Corruption:
    """One way of spoiling.

    Args:
        name: as in configs.
        about: what it does.
        source: paper or code.
        strength: default.
        strength_is: what the number means, "" where it has no meaning.
        on_image: (image, strength, generator) to image and record; all frames of a video are spoilt alike.
        on_frames: the same of all frames of a video at once; such a corruption works on videos only.
        needs_other: `on_image` takes another row's image as well.
    """

    name: str
    about: str
    source: str
    strength: float
    strength_is: str
    on_image: ImageOperator | None = None
    on_frames: FrameOperator | None = None
    needs_other: bool = False

    def image(
        self,
        image: Image.Image,
        *,
        generator: torch.Generator,
        strength: float | None = None,
        other: Image.Image | None = None,
    ) -> tuple[Image.Image, Record]:
        """The spoilt image, of the same size, and what was drawn.

        Raises:
            ConfigError: it works on videos only, or needs another image.
            HyperparameterError: the strength is out of range.
        """
        if self.on_image is None:
            known = [name for name, entry in CORRUPTIONS.items() if entry.on_image is not None]
            message = explain(
                f"corruption {self.name}",
                got="[an image]",
                expected="a video: it changes the order of frames",
                do=f"Of images: {', '.join(known)}.",
            )
            raise ConfigError(message)
        level = self.strength if strength is None else strength
        if not self.needs_other:
            return self.on_image(image, level, generator)
        if other is None:
            known = [name for name, entry in CORRUPTIONS.items() if not entry.needs_other]
            message = explain(
                f"corruption {self.name}",
                got="[no other image]",
                expected="an image of another row",
                do=f"Without one: {', '.join(known)}.",
            )
            raise ConfigError(message)
        return self.on_image(image, level, generator, other)

    def frames(
        self,
        frames: Sequence[Image.Image],
        *,
        generator: torch.Generator,
        strength: float | None = None,
        other: Image.Image | None = None,
    ) -> tuple[Frames, Record]:
        """As many spoilt frames, all spoilt alike or in another order, and what was drawn.

        Raises:
            ConfigError: it needs another image.
            HyperparameterError: the strength is out of range.
        """
        if self.on_frames is not None:
            return self.on_frames(tuple(frames), self.strength if strength is None else strength, generator)
        made: list[Image.Image] = []
        drawn: Record = {}
        state = generator.get_state()
        for frame in frames:
            # Every frame draws the same numbers: a crop that jumps about would be another corruption.
            generator.set_state(state)
            spoilt, drawn = self.image(frame, generator=generator, strength=strength, other=other)
            made.append(spoilt)
        return tuple(made), drawn


_ALL = (
    Corruption(
        "crop",
        "a random part, stretched to the size of the whole",
        "mDPO, arXiv 2406.11839",
        0.2,
        "largest share of the area that is kept; the smallest is 0.01",
        of_images.crop,
    ),
    Corruption(
        "diffusion_noise",
        "noise of a diffusion process",
        "POVID, arXiv 2402.11411; CHiP",
        500.0,
        "step of 1000 of the sigmoid schedule",
        of_images.diffusion_noise,
    ),
    Corruption(
        "pixel_mask",
        "random pixels in the mean colour",
        "OPA-DPO, arXiv 2501.09695",
        0.3,
        "probability of each pixel",
        of_images.pixel_mask,
    ),
    Corruption(
        "block_mask",
        "random squares of 14 pixels in the mean colour",
        "OPA-DPO, arXiv 2501.09695",
        0.3,
        "probability of each square",
        of_images.block_mask,
    ),
    Corruption("black", "black throughout", "CHiP", 0.0, "", of_images.black),
    Corruption(
        "mean_colour", "what CLIP's processor makes zeros of", "V-DPO", 0.0, "", of_images.mean_colour
    ),
    Corruption(
        "gaussian",
        "noise throughout",
        "V-DPO",
        1.0,
        "standard deviation of normalised pixels",
        of_images.gaussian,
    ),
    Corruption(
        "rotate",
        "turned either way, corners black",
        "CHiP",
        180.0,
        "largest angle in degrees; the smallest is half of it",
        of_images.rotate,
    ),
    Corruption(
        "other_image",
        "another row's image",
        "mDPO, arXiv 2406.11839",
        0.0,
        "",
        of_images.other_image,
        needs_other=True,
    ),
    Corruption(
        "mixup",
        "a mixture with another row's image",
        "MM-RLHF; JOOD",
        0.5,
        "share of the other image",
        of_images.mixup,
        needs_other=True,
    ),
    Corruption(
        "shuffle",
        "groups of frames in another order",
        "TEMPLE, arXiv 2503.16929",
        16.0,
        "number of groups",
        on_frames=of_frames.shuffle,
    ),
    Corruption(
        "reverse",
        "groups of frames from last to first",
        "TEMPLE, arXiv 2503.16929",
        16.0,
        "number of groups",
        on_frames=of_frames.reverse,
    ),
    Corruption(
        "drop",
        "one frame in so many is seen, at random",
        "TEMPLE, arXiv 2503.16929",
        4.0,
        "one in so many",
        on_frames=of_frames.drop,
    ),
    Corruption(
        "clip",
        "a stretch of the video, slowed down",
        "PaMi-VDPO, arXiv 2504.05810 (the share is ours)",
        0.25,
        "share of the frames",
        on_frames=of_frames.clip,
    ),
    Corruption(
        "frame_mask",
        "random frames are black",
        "RRPO, arXiv 2504.12083 (the share is ours)",
        0.5,
        "share of the frames",
        on_frames=of_frames.frame_mask,
    ),
)

CORRUPTIONS = MappingProxyType({entry.name: entry for entry in _ALL})
"""Every corruption by name."""


@dataclass(frozen=True)
class Spoiler:
    """A corruption at a strength: called with an image and a seed it gives the spoilt image.

    Args:
        kind: of `CORRUPTIONS`.
        strength: None is the corruption's own.
        others: images of other rows, of which one is drawn.
        clip: frames of another row's clip, or its picture, instead: frame by frame beside those of a video.
    """

    kind: Corruption
    strength: float | None = None
    others: tuple[Image.Image, ...] = ()
    clip: tuple[Image.Image, ...] = ()

    @property
    def needs_other(self) -> bool:
        """Whether it shows another row's picture, which `beside` gives it."""
        return self.kind.needs_other

    def beside(self, clip: Sequence[Image.Image]) -> "Spoiler":
        """The same with another row's picture, or the frames of its clip."""
        return replace(self, clip=tuple(clip))

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        """The spoilt image; equal seeds give equal ones.

        Raises:
            ConfigError: the corruption works on videos.
        """
        made, _ = self.kind.image(
            image,
            generator=generator_for(seed, "corruption"),
            strength=self.strength,
            other=self._other(seed),
        )
        return made

    def frames(self, frames: Sequence[Image.Image], seed: int) -> Frames:
        """The spoilt frames of a video, as many; operators on images spoil all of them alike."""
        if not (self.kind.needs_other and self.clip):
            made, _ = self.kind.frames(
                frames,
                generator=generator_for(seed, "corruption"),
                strength=self.strength,
                other=self._other(seed),
            )
            return made
        last, length = max(len(frames) - 1, 1), len(self.clip) - 1
        beside = [self.clip[round(place * length / last)] for place in range(len(frames))]
        return tuple(
            self.kind.image(
                frame, generator=generator_for(seed, "corruption"), strength=self.strength, other=other
            )[0]
            for frame, other in zip(frames, beside, strict=True)
        )

    def _other(self, seed: int) -> Image.Image | None:
        if self.clip:
            return self.clip[derive_seed(seed, "other frame") % len(self.clip)]
        return self.others[derive_seed(seed, "other image") % len(self.others)] if self.others else None


def corruption(
    kind: str,
    strength: float | None = None,
    *,
    others: Sequence[Image.Image] = (),
    others_follow: bool = False,
) -> Spoiler:
    """A corruption of that name at a strength: a function of an image and a seed.

    Args:
        kind: name in `CORRUPTIONS`.
        strength: None is the corruption's own.
        others: images to draw from, for those that show another row's.
        others_follow: they come row by row, with `Spoiler.beside`.

    Raises:
        UnknownNameError: no such corruption.
        ConfigError: it needs other images and there are none, or a strength is given to one that has none.
        HyperparameterError: the strength is out of range.
    """
    if kind not in CORRUPTIONS:
        raise unknown_name("corruption", kind, CORRUPTIONS)
    entry = CORRUPTIONS[kind]
    if strength is not None and not entry.strength_is:
        message = explain(f"corruption {kind} strength", got=strength, expected="none: it has no degrees")
        raise ConfigError(message)
    spoiler = Spoiler(entry, strength, tuple(others))
    try:
        # Every mistake of the settings shows on one small picture, before any row is read.
        small = Image.new("RGB", (8, 8))
        tried = spoiler.beside([small]) if others_follow and spoiler.needs_other else spoiler
        tried.frames((small,), 0)
    except HyperparameterError as error:
        raise ConfigError(str(error)) from error
    return spoiler


def corrupt_row(
    images: Sequence[Image.Image],
    kind: str,
    strength: float | None = None,
    *,
    key: int,
    others: Sequence[Image.Image] = (),
) -> list[Image.Image]:
    """All images of a row, spoilt; each draws its own part of the row's key.

    Raises:
        UnknownNameError: no such corruption.
        ConfigError: as `corruption`.
    """
    spoil = corruption(kind, strength, others=others)
    return [spoil(image, derive_seed(key, "corruption", number)) for number, image in enumerate(images)]
