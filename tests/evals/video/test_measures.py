"""What looks at clips: VBench's rules on known clips, networks from disk, what cannot be seen."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from mmalign.data.video_writers import write_clip
from mmalign.errors import CheckpointError, ConfigError, RowError, UnknownNameError
from mmalign.evals.benchmark_tool_store import ToolStore
from mmalign.evals.benchmarks.vbench import DIMENSIONS
from mmalign.evals.video.consistency import ConsistencyWatcher, load_background, load_subject, vbench_pixels
from mmalign.evals.video.dimensions import MEASURED, MISSING, require_dimensions
from mmalign.evals.video.flow import FlowWatcher, load_flow
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.evals.video.pixels import PixelWatcher, frame_difference
from mmalign.evals.video.style import StyleWatcher, load_style
from mmalign.rewards.pixels import CLIP_MEAN, CLIP_STD
from mmalign.rewards.sample import Sample
from mmalign.testing.benchmark_examples.filmed import MeanColours, StepWatcher, sliding
from mmalign.testing.reward_checkpoints.clip import write_clip_folder


def still(count=5):
    return sliding(3, frames=count, step=0)


def test_flicker_and_difference_say_the_same_of_pixels():
    frames = torch.zeros(3, 3, 16, 24, dtype=torch.uint8)
    frames[1] = 51
    seen = PixelWatcher().watch(Footage(frames, 7.0))
    assert seen["difference"] == pytest.approx(51.0)
    assert seen["flickering"] == pytest.approx(1 - 51 / 255)
    assert seen["shape"] == [3, 16, 24, 7.0]
    assert PixelWatcher().watch(Footage(still(), 7.0))["difference"] == 0.0


def test_a_clip_is_read_with_its_rate_from_file_or_bytes(tmp_path):
    path = write_clip(tmp_path / "a.mkv", sliding(1, frames=7), 5.0)
    for media in (path, path.read_bytes()):
        clip = read_footage(media)
        assert torch.equal(clip.frames, sliding(1, frames=7))
        assert clip.fps == pytest.approx(5.0)
    assert read_footage(path).thinned(3).fps == pytest.approx(5 / 3)
    assert len(read_footage(path).thinned(3).frames) == 3
    assert "expected at least 2" in PixelWatcher().see(write_clip(tmp_path / "one.mkv", still(1), 5.0))


def test_the_difference_is_a_reward_of_clips_for_suites(tmp_path):
    path = write_clip(tmp_path / "a.mkv", sliding(1), 5.0)
    moving, none = frame_difference([Sample("x", video=path)]), still()
    assert moving[0] == pytest.approx(PixelWatcher().watch(Footage(sliding(1), 5.0))["difference"])
    with pytest.raises(RowError, match="frames: 0"):
        frame_difference([Sample("x", image=none[0])])


class Shift(torch.nn.Module):
    """A flow of the mean brightness of the second picture, in pixels to the right."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, before, after, num_flow_updates):
        self.asked.append((tuple(before.shape), num_flow_updates))
        flow = torch.zeros(1, 2, *before.shape[-2:])
        flow[:, 0] = (after.mean() + 1) * 127.5
        return [torch.zeros_like(flow), flow]


def grey(levels, size=(131, 135)):
    return torch.stack([torch.full((3, *size), level, dtype=torch.uint8) for level in levels])


def test_motion_follows_vbenchs_rule_on_thinned_frames():
    network = Shift()
    watcher = FlowWatcher(network, weights="none")
    # 20 frames a second: round(2.5) is 2, to the even neighbour, so that frames 0, 2, 4, 6, 8, 10 remain.
    seen = watcher.watch(Footage(grey([0, 99, 3, 99, 4, 99, 2, 99, 5, 99, 1]), 20.0))
    assert seen["pairs"] == 5
    assert seen["mean"] == pytest.approx((3 + 4 + 2 + 5 + 1) / 5, abs=1e-4)
    assert seen["top"] == pytest.approx(seen["mean"], abs=1e-4)
    # 6 * 131 / 256 = 3.07 pixels; of 6 frames round(1.5) = 2 pairs must move.
    assert (seen["moving"], seen["needed"], seen["dynamic"]) == (2, 2, True)
    assert not watcher.watch(Footage(grey([0, 3, 4, 2, 3, 1]), 8.0))["dynamic"]
    assert set(network.asked) == {((1, 3, 136, 136), 20)}


def test_clips_too_small_for_flow_are_refused_in_words(tmp_path):
    path = write_clip(tmp_path / "a.mkv", sliding(1), 5.0)
    assert "optical flow: got [5 frames of 32x48" in FlowWatcher(Shift(), weights="none").see(path)


def test_raft_of_a_file_gives_torchvisions_own_flow(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = raft_large(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "raft.safetensors")
    watcher = load_flow(weights=tmp_path / "raft.safetensors")
    assert len(watcher.provenance()["weights"]) == 64
    watcher.updates = 2
    first, second = (torch.rand(3, 130, 128).mul(255).byte() for _ in range(2))
    pair = [F.pad(one[None] / 127.5 - 1, (0, 0, 3, 3), mode="replicate") for one in (first, second)]
    with torch.no_grad():
        expected = network(*pair, num_flow_updates=2)[-1][0]
    assert torch.allclose(watcher.flow(first, second), expected, atol=1e-4)
    save_file({"head.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: the checkpoint lacks"):
        load_flow(weights=tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="raft_large_C_T_V1"):
        load_flow(weights=tmp_path)


def test_consistency_is_half_first_half_before_and_negative_cosines_count_nothing():
    angles = torch.tensor([0.0, 60.0, 180.0]).deg2rad()
    wanted = torch.stack([angles.cos(), angles.sin()], dim=1)

    class Angles(MeanColours):
        def __call__(self, frames):
            return wanted[: len(frames)]

    seen = ConsistencyWatcher(Angles()).watch(Footage(still(3), 8.0))
    assert seen["consistency"] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert seen["neighbours"] == pytest.approx((0.5 - 0.5) / 2, abs=1e-6)
    calm = ConsistencyWatcher(MeanColours()).watch(Footage(still(), 8.0))
    assert calm["consistency"] == pytest.approx([1.0] * 4)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
        image_size=32,
        patch_size=8,
    )
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_subjects_are_seen_by_the_class_token_of_whole_frames(dino):
    watcher = load_subject(weights=dino)
    frames = sliding(4, frames=3)
    network = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    small = F.interpolate(frames.float(), (32, 48), mode="bilinear", align_corners=False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        pixels = (small / 255 - mean) / std
        expected = network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert torch.allclose(watcher.encoder(frames), expected, atol=1e-5)
    assert watcher.name == "DINO ViT-32/8"
    assert set(watcher.provenance()["weights"]) == {"config.json", "model.safetensors"}
    (dino.parent / "other").mkdir(exist_ok=True)
    (dino.parent / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"got 'bert', expected 'vit'"):
        load_subject(weights=dino.parent / "other")


def test_backgrounds_are_seen_by_clip_without_antialiasing(tmp_path):
    folder = write_clip_folder(tmp_path / "clip", seed=7, weight_file="pytorch_model.bin")
    watcher = load_background(weights=folder)
    frames = sliding(4, frames=3)
    rule = watcher.encoder.encoder.preprocessing
    pixels = vbench_pixels(frames, rule.size, crop=True, mean=rule.mean, std=rule.std)
    assert pixels.shape == (3, 3, rule.size, rule.size)
    network = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(pixel_values=pixels).image_embeds
    assert torch.allclose(watcher.encoder(frames), expected, atol=1e-5)
    assert watcher.name.startswith("CLIP ViT-")


def test_style_is_the_cosine_of_every_frame_and_the_words_of_the_style(tmp_path):
    folder = write_clip_folder(tmp_path / "clip", seed=7, weight_file="pytorch_model.bin")
    styles, frames = load_style(weights=folder), sliding(4, frames=3)
    words = "van gogh style"
    network, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pictures = []
    for frame in frames:  # 32 x 48 pixels to 28 x 42, of which columns 7 to 34 are the centre
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((42, 28), Image.Resampling.BICUBIC)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[..., 7:35] / 255)
    mean, std = torch.tensor([CLIP_MEAN, CLIP_STD]).view(2, 3, 1, 1)
    ids = tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = network(input_ids=ids, pixel_values=(torch.stack(pictures) - mean) / std)
    expected = found.logits_per_image[:, 0] / network.logit_scale.exp()
    seen = styles.of(words).watch(Footage(frames, 8.0))["style"]
    assert seen == pytest.approx(expected.tolist(), abs=1e-5)
    other = styles.of("in cyberpunk").watch(Footage(frames, 8.0))["style"]
    assert other != pytest.approx(seen, abs=1e-3)
    assert styles.name == "CLIP ViT-20/14"
    assert styles.of(words).provenance()["style"] == words


def test_a_style_is_seen_once_per_clip_and_words(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", sliding(1), 5.0)
    styles = load_style(weights=write_clip_folder(tmp_path / "clip", seed=7, weight_file="pytorch_model.bin"))
    with ToolStore(tmp_path / "store") as store:
        kept = store.wrap("style", styles)
        assert kept.name == styles.name
        first, second = kept.of("ink").see(path), kept.of("oil").see(path)
    assert first != second
    monkeypatch.setattr(StyleWatcher, "watch", lambda *_: pytest.fail("seen twice"))
    with ToolStore(tmp_path / "store", ask=False) as store:
        assert store.wrap("style", styles).of("oil").see(path) == second
        with pytest.raises(CheckpointError, match="style: 1 of 1 are not there yet"):
            store.wrap("style", styles).of("chalk").see(path)


def test_what_was_seen_is_stored_and_what_could_not_be_is_not(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", sliding(1), 5.0)
    broken = tmp_path / "b.mkv"
    broken.write_bytes(b"no clip")
    with ToolStore(tmp_path / "store") as store:
        watcher = store.wrap("flow", StepWatcher())
        seen = watcher.see(path)
        assert isinstance(watcher.see(broken), str)
        assert isinstance(watcher.see(tmp_path / "nowhere.mkv"), str)
    monkeypatch.setattr(StepWatcher, "watch", lambda *_: pytest.fail("seen twice"))
    with ToolStore(tmp_path / "store", ask=False) as store:
        again = store.wrap("flow", StepWatcher())
        assert again.see(path) == seen
        other = write_clip(tmp_path / "c.mkv", sliding(2), 5.0)
        with pytest.raises(CheckpointError, match="flow: 1 of 1 are not there yet"):
            again.see(other)


def test_dimensions_that_are_not_measured_say_what_they_lack():
    assert set(MEASURED) | set(MISSING) == set(DIMENSIONS)
    require_dimensions(["subject_consistency", " dynamic degree"], ["subject", "flow"])
    with pytest.raises(ConfigError, match=r"motion smoothness: got \[not measured here\].*AMT-S"):
        require_dimensions(["motion_smoothness"], ["flow"])
    with pytest.raises(ConfigError, match=r"dynamic degree: got 'tools\.flow=none'"):
        require_dimensions(["dynamic degree"], ["pixels"])
    with pytest.raises(
        ConfigError, match=r"appearance style: got 'tools\.style=none'.*tools\.style=vit-b-32"
    ):
        require_dimensions(["appearance_style"], ["pixels"])
    require_dimensions(["appearance_style"], ["style"])
    with pytest.raises(UnknownNameError, match="VBench dimension"):
        require_dimensions(["beauty"], [])
