import pytest
import torch
from PIL import Image

from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError
from mmalign.evals.base import Item
from mmalign.evals.generation import generate_missing
from mmalign.evals.jobs import Job, jobs_of
from mmalign.evals.model_identity import model_fingerprint
from mmalign.evals.results import load_pictures
from mmalign.evals.suite import GenerationConfig, ModelSpec


def test_noise_hangs_on_the_name_of_a_prompt_and_not_on_its_place():
    first = initial_noise((2, 3), seed=0, prompt="set/00007/0")
    again = initial_noise((2, 3), seed=0, prompt="set/00007/0")
    other = initial_noise((2, 3), seed=0, prompt="set/00008/0")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_prompt_has_its_copies_in_a_row():
    items = [Item("a", "x"), Item("b", "y")]
    assert [job.sample_id for job in jobs_of(items, 3)] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    assert Job(items[1], 2).sample_id == "b/2"


@pytest.mark.parametrize("changed", ["weights", "config", "side"])
def test_a_model_is_known_by_its_files_and_its_side(tmp_path, changed):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.safetensors").write_bytes(b"weights")
    (tmp_path / "model_index.json").write_text("{}")
    spec = ModelSpec(name="x", source=str(tmp_path))
    before = model_fingerprint(spec)
    assert model_fingerprint(ModelSpec(name="another name", source=str(tmp_path))) == before
    (tmp_path / "notes.txt").write_text("no part of the model")
    assert model_fingerprint(spec) == before
    if changed == "weights":
        (tmp_path / "unet/model.safetensors").write_bytes(b"other weights")
    elif changed == "config":
        (tmp_path / "model_index.json").write_text('{"a": 1}')
    else:
        spec = ModelSpec(name="x", source=str(tmp_path), weights="base")
    assert model_fingerprint(spec) != before


# --- pictures of other programs


def adopt(tmp_path, names, items, copies=1):
    """Sample id to shade of the picture taken for it; every file of `names` has a shade of its own."""
    folder = tmp_path / "renders"
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 5), shade).save(folder / name)
    spec, jobs = ModelSpec(name="x", source=f"images:{folder}"), jobs_of(items, copies)
    keys = generate_missing(spec, jobs, GenerationConfig(), tmp_path / "store")
    found = load_pictures(tmp_path / "store", spec, "", jobs, keys).pictures
    return {name: Image.open(picture.path).getpixel((0, 0)) for name, picture in found.items()}


def test_a_bare_number_does_not_stand_for_prompts_of_two_sets(tmp_path):
    items = [Item("a/00000", "x"), Item("b/00000", "y")]
    with pytest.raises(ConfigError, match="none of them of the suite"):
        adopt(tmp_path, ["00000.png"], items)
    assert adopt(tmp_path, ["00000.png", "a/0.png", "b_00000.png"], items) == {"a/00000/0": 1, "b/00000/0": 2}


def test_numbers_may_count_within_the_set_or_within_the_group(tmp_path):
    items = [Item(f"s/{n:05d}", "x", group="photo" if n >= 2 else "anime") for n in range(5)]
    within = ["anime/0.png", "anime/1.png", "photo/0.png", "photo/1.png", "photo/2.png"]
    assert list(adopt(tmp_path / "group", within, items).values()) == [0, 1, 2, 3, 4]
    through = ["anime/0.png", "anime/1.png", "photo/2.png", "photo/3.png", "photo/4.png"]
    assert list(adopt(tmp_path / "set", through, items).values()) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="within the set or within the group"):
        adopt(tmp_path / "either", ["photo/2.png"], items)


def test_one_file_is_not_taken_for_two_samples_nor_two_files_for_one(tmp_path):
    with pytest.raises(ConfigError, match=r"00000\.jpg and 00000\.png for s/00000/0', expected one file"):
        adopt(tmp_path / "a", ["00000.png", "00000.jpg"], [Item("s/00000", "x")])
    items = [Item("s/7", "x"), Item("s/7_1", "y")]
    with pytest.raises(ConfigError, match=r"7_1\.png for s/7/1 and s/7_1/0"):
        adopt(tmp_path / "b", ["7_1.png"], items, copies=2)


def test_pictures_of_a_folder_that_was_moved_are_found_at_the_new_place(tmp_path):
    items = [Item("s/00000", "x")]
    assert adopt(tmp_path, ["0.png"], items) == {"s/00000/0": 0}
    (tmp_path / "renders").rename(tmp_path / "elsewhere")
    spec, jobs = ModelSpec(name="x", source=f"images:{tmp_path / 'elsewhere'}"), jobs_of(items, 1)
    keys = generate_missing(spec, jobs, GenerationConfig(), tmp_path / "store")
    (picture,) = load_pictures(tmp_path / "store", spec, "", jobs, keys).pictures.values()
    assert picture.path.is_file()


# --- what is stored


def test_a_run_is_known_by_its_base_model_and_its_newest_checkpoint(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    step = run / "checkpoints/step-00000002"
    base.mkdir()
    step.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"base")
    (run / "mmalign_config.yaml").write_text(f"model: {{source: '{base}'}}\n")
    (step / "state.json").write_text("{}")
    (step / "weights.safetensors").write_bytes(b"weights")
    sides = [ModelSpec(name="x", source=str(run), weights=side) for side in ("base", "trained")]
    first = [model_fingerprint(spec) for spec in sides]
    assert len({*first}) == 2
    (run / "log.json").write_text("grows")
    assert [model_fingerprint(spec) for spec in sides] == first
    (step / "weights.safetensors").write_bytes(b"other weights")
    second = [model_fingerprint(spec) for spec in sides]
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
    (base / "model.safetensors").write_bytes(b"other base")
    third = [model_fingerprint(spec) for spec in sides]
    assert not {*third} & {*second}


def test_a_folder_below_one_called_checkpoints_is_no_run_and_a_renamed_one_the_same_model(tmp_path):
    folder = tmp_path / "checkpoints/sd15"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_fingerprint(ModelSpec(name="x", source=str(folder)))
    renamed = folder.rename(tmp_path / "other")
    assert model_fingerprint(ModelSpec(name="x", source=str(renamed))) == before


def test_what_is_stored_stays_when_its_batch_is_painted_again_with_others(tmp_path, monkeypatch):
    from contextlib import contextmanager

    from mmalign.evals import generation

    painted = []

    @contextmanager
    def painter(spec, settings, device):
        def paint(jobs):
            painted.append(len(jobs))  # a network rounds by the size of its batch
            return [Image.new("L", (2, 2), 10 * len(painted)) for _ in jobs]

        yield generation.Painter(paint, generation.recipe_of(settings, num_steps=1, guidance_scale=1.0))

    monkeypatch.setattr(generation, "_painter", painter)
    items = [Item(f"s/{n}", "x") for n in range(5)]
    spec, settings = ModelSpec(name="x", source="hub/x"), GenerationConfig(batch_size=3)
    shades = []
    for count in (4, 5):
        jobs = jobs_of(items[:count], 1)
        keys = generate_missing(spec, jobs, settings, tmp_path)
        found = load_pictures(tmp_path, spec, "", jobs, keys).pictures.values()
        shades.append([Image.open(picture.path).getpixel((0, 0)) for picture in found])
    assert painted == [3, 1, 2]
    assert shades == [[10, 10, 10, 20], [10, 10, 10, 20, 30]]
