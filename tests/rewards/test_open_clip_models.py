"""HPS on open_clip checkpoints: full forwards against plain open_clip, both resize paths, loading."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import rewards
from mmalign.errors import CheckpointError, ConfigError
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints.clip import write_hps

PROMPTS = ("a red cube", "", "zwei blaue Würfel 🐈", "many words " * 60)
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv21": "HPS_v2.1_compressed.pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hps")
    for number, file in enumerate(FILES.values()):
        write_hps(file)(place, number)
    return place


def pictures():
    generator = torch.Generator().manual_seed(5)
    for size in ((301, 243), (137, 259), (224, 97), (53, 53)):
        yield Image.fromarray(
            torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
        )


def plain_cosines(folder, file, images, prompts, *, antialias):
    """open_clip's own network, tokenizer and a resize written out here."""
    import open_clip
    from open_clip.model import CLIP

    model = CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"], output_dict=True)
    state = torch.load(folder / file, weights_only=True)["state_dict"]
    model.load_state_dict({name: value.float() for name, value in state.items()})
    batch = torch.zeros(len(images), 3, 224, 224)
    for row, image in zip(batch, images, strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None] / 255
        scale = 224 / max(image.size)
        size = (round(image.height * scale), round(image.width * scale))
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=antialias)[0]
        top, left = (224 - size[0]) // 2, (224 - size[1]) // 2
        row[:, top : top + size[0], left : left + size[1]] = pixels
    with torch.no_grad():
        found = model.eval()((batch - MEAN) / STD, open_clip.tokenize(list(prompts)))
    return (found["image_features"] * found["text_features"]).sum(-1).double()


@pytest.mark.parametrize("name", ["hpsv2", "hpsv21"])
@pytest.mark.parametrize("antialias", [True, False])
def test_hps_equals_plain_open_clip(folder, name, antialias):
    images = list(pictures())
    expected = plain_cosines(folder, FILES[name], images, PROMPTS, antialias=antialias)
    reward = rewards.load(name, weights=folder, antialias=antialias)
    found = reward.score([Sample(p, image=i) for p, i in zip(PROMPTS, images, strict=True)])
    torch.testing.assert_close(found.first(), expected, rtol=0, atol=3e-6)
    assert found.truncated == (False, False, False, True)


def test_the_two_versions_and_the_resize_paths_are_different_scorers(folder):
    image = next(pictures())
    loaded = [
        rewards.load("hpsv2", weights=folder),
        rewards.load("hpsv21", weights=folder),
        rewards.load("hpsv2", weights=folder, antialias=False),
        rewards.load("hpsv2", weights=folder, backend="pil"),
    ]
    values = [float(reward.score([Sample("a red cube", image=image)]).values) for reward in loaded]
    assert len({round(value, 7) for value in values}) == 4
    assert len({reward.fingerprint() for reward in loaded}) == 4


def test_pillow_cannot_leave_antialiasing_out(folder):
    with pytest.raises(ConfigError, match="antialias=False with backend='pil'"):
        rewards.load("hpsv2", weights=folder, antialias=False, backend="pil")


def test_names_of_special_tokens_in_a_prompt_are_text(folder):
    encoder = rewards.load("hpsv2", weights=folder).encoder
    plain, _ = encoder.tokens("a cat")
    for hidden in ("a cat <end_of_text> with wings", "a cat &lt;END_OF_TEXT&gt; with wings"):
        ids, _ = encoder.tokens(hidden)
        assert int((ids == 49407).nonzero()[0, 0]) > int((plain == 49407).nonzero()[0, 0]) + 5


def test_the_network_of_a_checkpoint_is_the_one_the_card_names(tmp_path):
    """Without a configuration beside it, a file that is no ViT-H-14 does not load."""
    folder = write_hps(FILES["hpsv2"])(tmp_path / "hps", 0)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"HPS_v2_compressed.pt: the weights do not fit.*missing: "):
        rewards.load("hpsv2", weights=folder)


@pytest.mark.parametrize("key", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_a_missing_key_is_named(tmp_path, key):
    folder = write_hps(FILES["hpsv2"])(tmp_path / "hps", 0)
    stored = torch.load(folder / FILES["hpsv2"], weights_only=True)
    del stored["state_dict"][key]
    torch.save(stored, folder / FILES["hpsv2"])
    with pytest.raises(CheckpointError, match=f"missing: {key}"):
        rewards.load("hpsv2", weights=folder)


def test_an_additional_key_is_named(tmp_path):
    folder = write_hps(FILES["hpsv2"])(tmp_path / "hps", 0)
    stored = torch.load(folder / FILES["hpsv2"], weights_only=True)
    stored["state_dict"]["score_predictor.weight"] = torch.zeros(2)
    torch.save(stored, folder / FILES["hpsv2"])
    with pytest.raises(CheckpointError, match=r"unexpected: score_predictor.weight"):
        rewards.load("hpsv2", weights=folder)
