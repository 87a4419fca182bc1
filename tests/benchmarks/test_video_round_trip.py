"""What comes back of clips is measured rightly, and the codes beside VAEs are what they are called."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mmalign.testing.clips import clip as encoded_clip
from mmalign.testing.tiny_video.wan import write_tiny_wan
from mmalign.video.families.wan import FAMILY

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GRID = (range(1), range(1, 5))
"""Five frames in two latent ones."""


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def noisy(seed=0, size=(16, 24), frames=5):
    return torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(seed))


def moving(seed, *, frames=5, size=(32, 48)):
    """A bright square that moves over a slope of grey, and that knows its seed."""
    clip = torch.linspace(0.1, 0.6, size[1]).expand(frames, 3, *size).clone()
    for place in range(frames):
        left = (3 * place + 5 * seed) % (size[1] - 12)
        clip[place, :, 8:20, left : left + 12] = 1.0
    return clip


# ------------------------------------------------------------------------------------------------- figures


def test_an_error_of_a_tenth_is_twenty_decibels_and_equal_frames_are_as_good_as_can_be():
    from video_round_trip import PEAK, psnr, ssim

    true = noisy() * 0.5
    assert psnr(true, true + 0.1).tolist() == pytest.approx([20.0] * 5, abs=1e-3)
    assert psnr(true, true).tolist() == pytest.approx([PEAK] * 5)
    assert ssim(true, true).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    half = true.clone()
    half[3] += 0.1
    assert psnr(true, half)[3] < 21 < psnr(true, half)[2]


def test_structural_similarity_is_that_of_the_formula_on_one_window():
    from video_round_trip import ssim

    one, two = noisy(size=(11, 11), frames=1), noisy(5, size=(11, 11), frames=1)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    x, y = ((clip[0].double() * weights).sum(0) for clip in (one, two))
    place = torch.arange(11.0, dtype=torch.float64) - 5
    window = torch.exp(-(place[:, None] ** 2 + place**2) / 4.5)
    window /= window.sum()
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    both = (window * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(ssim(one, two)) == pytest.approx(float(wanted), abs=1e-5)
    assert float(ssim(one, 1 - one)) < 0


def test_figures_say_where_frames_lie_and_how_much_motion_is_left():
    from make_clip_pairs import Excerpt
    from video_round_trip import Code, measured

    true = moving(3)
    about = Excerpt("things", "a 0", "a thing", (255 * true).to(torch.uint8), 8.0)
    code = Code("still", 3, 8, GRID, lambda clip: clip)
    held = measured(about, true, true[:1].expand_as(true), code)
    assert (held.motion, held.places, held.psnr[0]) == (0.0, [0, 1, 2, 3, 4], 99.9)
    assert max(held.psnr[1:]) < 30
    assert measured(about, true, true.flip(0), code).motion == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------- codes


def test_blocks_have_one_colour_each_and_the_first_frame_is_alone():
    from video_round_trip import blocks

    clip = noisy()
    made = blocks(clip, grid=GRID, side=8)
    assert made[0, :, 5, 7].tolist() == pytest.approx(clip[0, :, :8, :8].mean((1, 2)).tolist(), abs=1e-6)
    whole = clip[1:, :, 8:, 16:].mean((0, 2, 3))
    assert made[3, :, 9, 20].tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    assert torch.equal(made[1], made[4])


def test_all_cosines_give_the_clip_back_and_fewer_give_less():
    from video_round_trip import blocks, cosines, psnr

    clip = 0.1 + 0.8 * noisy()
    whole = cosines(clip, grid=GRID, side=8, count=4 * 3 * 8 * 8)
    torch.testing.assert_close(whole, clip, rtol=0, atol=1e-5)
    slope = moving(0, size=(16, 24))
    few, more = (
        float(psnr(slope, cosines(slope, grid=GRID, side=8, count=count)).mean()) for count in (3, 23)
    )
    assert few + 3 < more
    # Three numbers per cell are the mean colour or better.
    assert few > float(psnr(slope, blocks(slope, grid=GRID, side=8)).mean()) - 1e-3


def test_kept_numbers_are_counted_and_codes_without_training_stand_once_beside_vaes():
    from video_round_trip import Code, untrained_codes

    vae = Code("vae", 16, 8, GRID, lambda clip: clip)
    assert vae.share == pytest.approx(16 * 2 * 6 / (5 * 3 * 16 * 24))
    made = untrained_codes([vae, vae])
    assert [code.name for code in made] == ["blocks of 4 x 8 x 8", "16 cosines of 4 x 8 x 8"]
    assert made[1].share == vae.share
    assert made[0].back(noisy()).shape == made[1].back(noisy()).shape == (5, 3, 16, 24)


def test_a_models_vae_is_loaded_without_its_network_and_gives_what_the_model_gives(tmp_path):
    from video_round_trip import code_of_model, load_codec

    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig

    folder = write_tiny_wan(tmp_path / "wan")
    for path in (folder / "transformer").glob("*.safetensors"):
        path.rename(path.with_suffix(".away"))
    found = load_codec(str(folder), num_frames=5, size=(32, 48), fps=8.0)
    back = code_of_model("wan", found).back(moving(2))
    for path in (folder / "transformer").glob("*.away"):
        path.rename(path.with_suffix(".safetensors"))
    sizes = VideoConfig(num_frames=5, height=32, width=48, fps=8.0, posterior="mean")
    model = FAMILY.load(
        ModelConfig(family="wan", source=str(folder)), sizes, device="cpu", dtype=torch.float32
    )
    moments = model.moments((2 * moving(2) - 1).unsqueeze(0))
    wanted = model.decode_clips(model.codec.scale(moments.mean))[0]
    torch.testing.assert_close(back, wanted.detach(), rtol=0, atol=1e-6)


def test_a_vae_is_trained_on_first_halves_and_read_again(tmp_path):
    from make_clip_pairs import Excerpt
    from video_round_trip import fitted_code, parted

    names = ["a 0", "b 0", "a 1", "a 2", "b 1", "c 0"]
    nothing = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    clips = [Excerpt("things", name, name, nothing, 8.0) for name in names]
    assert parted(clips) == ([0, 1], [2, 3, 4, 5])
    shown = [moving(0, frames=17, size=(32, 32))]
    first = fitted_code("fitted", tmp_path / "vae", shown, steps=2).back(shown[0])
    again = fitted_code("fitted", tmp_path / "vae", shown, steps=1000).back(shown[0])
    assert first.shape == (17, 3, 32, 32)
    assert torch.equal(first, again)


# ------------------------------------------------------------------------------------------------- training


def trained(**changes):
    from train_on_clips import Trained

    usual = {
        "model": "Wan",
        "pairs": 7,
        "cached": 0.5,
        "losses": [0.6931, 0.65],
        "killed_at": 5,
        "digests": ("a" * 64, "a" * 64),
        "same_log": True,
        "moved": 0.25,
        "apart": 0.002,
    }
    return Trained(**{**usual, **changes})


def test_the_table_of_training_says_no_where_something_went_wrong():
    from train_on_clips import shown

    good = shown([trained()])
    assert "| equal; losses equal | yes; yes |" in good
    assert "| every loss finite | yes |" in good
    bad = shown([trained(digests=("a" * 64, "b" * 64), losses=[0.6931, float("nan")], same_log=False)])
    assert "| equal; losses equal | NO; NO |" in bad
    assert "| every loss finite | NO |" in bad


def test_steps_that_were_done_again_count_once(tmp_path):
    from train_on_clips import losses_of

    lines = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"note": "resumed"},
        {"step": 2, "loss": 0.125},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert losses_of(tmp_path) == [0.5, 0.125]


@pytest.mark.slow
def test_a_run_that_ends_before_it_is_killed_is_no_proof(tmp_path):
    from train_on_clips import run_killed

    config = tmp_path / "run.yaml"
    config.write_text("method: no such method\n")
    with pytest.raises(RuntimeError, match="before it was killed: take more steps"):
        run_killed(config, tmp_path / "metrics.jsonl", after=3)


# ----------------------------------------------------------------------------------------- the command


def test_the_command_renews_its_page_and_writes_figures_and_a_picture(tmp_path, monkeypatch, capsys):
    import video_round_trip
    from PIL import Image

    clips = tmp_path / "clips"
    clips.mkdir()
    pixels = (255 * moving(2, frames=11, size=(48, 64))).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    (clips / "square.mp4").write_bytes(encoded_clip("mp4", pixels, rate=8))
    page = tmp_path / "page.md"
    names = ("video_round_trip", "video_round_trip_clips", "video_round_trip_frames")
    page.write_text("before\n" + "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in names))
    model = write_tiny_wan(tmp_path / "wan")
    words = [f"things={clips}", "--model", f"Wan={model}", "--toy", "1", "--frames", "5", "--page", str(page)]
    words += ["--figures", str(tmp_path / "f.jsonl"), "--picture", str(tmp_path / "p.png")]
    monkeypatch.setattr(sys, "argv", ["video_round_trip.py", *words])
    video_round_trip.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert "| Wan | 0.83 % | things | 2 |" in text
    assert "| square 1, things |" in text
    assert "| 4 cosines of 4 x 8 x 8 | toy world |" in text
    figures = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert len(figures) == 3 * 3
    assert all(len(line["psnr"]) == len(line["ssim"]) == 5 for line in figures)
    with Image.open(tmp_path / "p.png") as shown:
        assert shown.size == (3 * 96 + 2 * 4, 4 * (64 + 4) + 12 + 4 * (32 + 4))
    assert "of things, toy world: the clip, Wan" in capsys.readouterr().out


def test_the_command_says_what_it_lacks(monkeypatch, capsys):
    import video_round_trip

    for words, said in ((["--toy", "1"], "expected clips"), (["--model", "x"], "expected NAME=FOLDER")):
        monkeypatch.setattr(sys, "argv", ["video_round_trip.py", *words])
        with pytest.raises(SystemExit):
            video_round_trip.main()
        assert said in capsys.readouterr().err


def test_the_shipped_page_can_be_renewed():
    page = (BENCHMARKS.parent / "docs" / "video-round-trip.md").read_text(encoding="utf-8")
    parts = ("video_round_trip", "video_round_trip_clips", "video_round_trip_frames", "clip_training")
    for name in parts:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        assert page.count(begin) == page.count(end) == 1
        assert "| " in page.partition(begin)[2].partition(end)[0]
