"""The aesthetic predictors: full forwards written out, heads with and without activations, loading."""

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from mmalign import rewards
from mmalign.errors import CheckpointError, UnknownNameError
from mmalign.rewards.aesthetic_head import AestheticHead, unit_rows
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints.clip import (
    SIZE,
    write_aesthetic_v1,
    write_aesthetic_v2,
    write_clip_folder,
)


def pictures():
    generator = torch.Generator().manual_seed(11)
    for size in ((28, 32), (40, 28), (60, 42)):  # even crop margins: no rule of rounding plays a part
        yield Image.fromarray(
            torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
        )


def plain_embeddings(folder, images):
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    model = CLIPVisionModelWithProjection.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        found = model(**processor(images, return_tensors="pt")).image_embeds
    return found / found.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    ("head", "places", "relu"),
    [
        ("sac+logos+ava1-l14-linearMSE", (0, 2, 4, 6, 7), False),
        ("ava+logos-l14-reluMSE", (0, 3, 6, 9, 11), True),
    ],
)
def test_v2_equals_the_layers_one_after_another(tmp_path, head, places, relu):
    folder = write_aesthetic_v2(tmp_path / "weights", 0)
    state = torch.load(folder / "improved-aesthetic-predictor" / f"{head}.pth", weights_only=True)
    hidden = plain_embeddings(folder / "clip-vit-large-patch14", list(pictures()))
    for place in places:
        hidden = hidden @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
        if relu and place != places[-1]:
            hidden = hidden.clamp(min=0)
    reward = rewards.load("aesthetic_v2", weights=folder, head=head)
    found = reward.score([Sample(image=image) for image in pictures()])
    torch.testing.assert_close(found.first(), hidden[:, 0].double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("backbone", "file", "clip"),
    [
        ("vit-l-14", "sa_0_4_vit_l_14_linear.pth", "clip-vit-large-patch14"),
        ("vit-b-32", "sa_0_4_vit_b_32_linear.pth", "clip-vit-base-patch32"),
    ],
)
def test_v1_equals_one_linear_layer(tmp_path, backbone, file, clip):
    folder = write_aesthetic_v1(tmp_path / "weights", 0)
    state = torch.load(folder / "aesthetic-predictor" / file, weights_only=True)
    expected = plain_embeddings(folder / clip, list(pictures())) @ state["weight"].T + state["bias"]
    reward = rewards.load("aesthetic_v1", weights=folder, backbone=backbone)
    found = reward.score([Sample("not read", image=image) for image in pictures()])
    torch.testing.assert_close(found.first(), expected[:, 0].double(), rtol=0, atol=2e-5)
    assert (reward.card.name == "aesthetic_v1") == (backbone == "vit-l-14")


def test_the_prompt_is_not_read(tmp_path):
    reward = rewards.load("aesthetic_v2", weights=write_aesthetic_v2(tmp_path / "weights", 0))
    image = next(pictures())
    one, other = reward.score([Sample("a", image=image), Sample("many words " * 99, image=image)]).first()
    assert float(one) == pytest.approx(float(other), abs=1e-5)
    assert reward.score_tensor(torch.rand(2, 3, 31, 37)).shape == (2,)


def test_a_zero_embedding_keeps_its_length(draw):
    rows = torch.cat([torch.zeros(1, 5), draw(2, 5, dtype=torch.float32)])
    assert unit_rows(rows).norm(dim=-1).tolist() == pytest.approx([0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"layers.0.weight": (3, 5), "layers.0.bias": (3,), "layers.5.weight": (1, 3)},
            "got the keys layers.0.bias",
        ),
        ({}, "got the keys none"),
        ({"weight": (2, 5), "bias": (2,)}, r"got layers of \[2, 5\], expected each"),
    ],
)
def test_other_heads_are_refused(state, message):
    with pytest.raises(CheckpointError, match=f"some.pth: {message}"):
        AestheticHead.from_state(
            {name: torch.zeros(shape) for name, shape in state.items()}, where="some.pth"
        )


def test_a_head_of_another_tower_is_refused(tmp_path):
    folder = write_aesthetic_v2(tmp_path / "weights", 0)
    head = folder / "improved-aesthetic-predictor" / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, head)
    with pytest.raises(CheckpointError, match=r"24 features of the tower.*expected 7 features"):
        rewards.load("aesthetic_v2", weights=folder)


def test_only_the_image_side_of_the_backbone_is_read(tmp_path):
    """Keys of the text side are left out; any other surplus is an error."""
    folder = write_aesthetic_v2(tmp_path / "weights", 0)
    reward = rewards.load("aesthetic_v2", weights=folder)
    names = {name.partition(".")[0] for name, _ in reward.encoder.network.named_parameters()}
    assert names == {"vision_model", "visual_projection"}


def test_heads_and_backbones_are_named(tmp_path):
    folder = write_clip_folder(tmp_path / "weights")
    with pytest.raises(UnknownNameError, match=r"aesthetic_v2 head 'sac'.*Known: ava"):
        rewards.load("aesthetic_v2", weights=folder, head="sac")
    with pytest.raises(UnknownNameError, match=r"aesthetic_v1 backbone 'vit-h-14'.*Known: vit-b-16"):
        rewards.load("aesthetic_v1", weights=folder, backbone="vit-h-14")
