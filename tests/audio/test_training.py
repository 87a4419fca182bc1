"""Runs of a model of sound: what its sections say, what it leaves behind, the cache, interruptions, ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmalign.cli.encoding import encode_run
from mmalign.cli.main import main
from mmalign.data.audio_media import decode_audio
from mmalign.data.config import AudioLimits
from mmalign.data.segments import FrameGrid
from mmalign.errors import ConfigError
from mmalign.likelihood.weighting import MinSnr
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.on_sounds import OnSounds
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.config import load_run
from mmalign.train.parts import frame_grid, in_time, load_model, make_likelihood
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


# ------------------------------------------------------------------------------------------------- sections


def test_a_run_of_sound_has_an_audio_section_and_numbers_of_its_own(write_run) -> None:
    run = load_run(write_run(), ["train.learning_rate=null", "train.steps=null"])
    config = run.config
    assert isinstance(config, AudioRunConfig)
    assert config.media is config.audio
    assert (config.media_name, config.data.all_sources[0].media) == ("audio", "audio")
    assert (config.train.epochs, config.train.steps) == (4, None)
    assert (config.train.learning_rate, run.objective_arguments["beta"]) == (9.6e-7, 2000.0)


def test_methods_of_pictures_take_numbers_for_sound(write_run) -> None:
    run = load_run(write_run(method="diffusion_kto", kind="unpaired"), ["train.learning_rate=null"])
    assert run.objective_arguments["beta"] == 2000.0
    assert run.config.train.learning_rate == 2e-5
    assert run.filled["train.learning_rate"].mark == "ours"
    assert run.filled["objective.utility"].mark == "code", "what holds of all media stays"


def test_steps_of_pictures_do_not_stand_beside_epochs_of_sound(write_run) -> None:
    run = load_run(write_run(method="diffusion_dpo"), ["train.steps=null"])
    assert (run.config.train.epochs, run.config.train.steps) == (4, None)


def test_a_section_of_another_medium_is_refused(write_run) -> None:
    with pytest.raises(ConfigError, match="got the section image for a model of sound"):
        load_run(write_run(image={"resolution": 512}))


def test_a_method_of_language_models_is_refused(write_run) -> None:
    with pytest.raises(ConfigError, match=r"is for language models, and this family is one of audio models"):
        load_run(write_run(method="mdpo"))


def test_labels_in_time_are_refused_for_pictures(write_run) -> None:
    picture = {"family": "sd15", "source": "somewhere"}
    path = write_run(method="densedpo", model=picture)
    content = yaml.safe_load(path.read_text()) | {"image": {"resolution": 512}}
    del content["audio"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"'densedpo' needs preference of every candidate"):
        load_run(path)


def test_labels_in_time_are_refused_beside_a_stored_reference(write_run) -> None:
    with pytest.raises(ConfigError, match=r"reference.kind: got 'stored'.*compares frames"):
        load_run(write_run(method="densedpo", reference={"kind": "stored"}))


@pytest.mark.parametrize(("method", "labels"), [("diffusion_kto", "unpaired"), ("densedpo", "stretches")])
def test_sounds_are_not_mixed_where_a_mixture_has_no_label(write_run, method: str, labels: str) -> None:
    with pytest.raises(ConfigError, match=rf"mix_augmentation: got 0.5, expected 0 .* learns from {labels}"):
        load_run(write_run(method=method, audio={"mix_augmentation": 0.5}))


def test_a_row_alone_has_nothing_to_be_mixed_with(write_run) -> None:
    run = write_run(audio={"mix_augmentation": 0.5}, train={"batch_size": 1})
    with pytest.raises(ConfigError, match=r"mix_augmentation: got '0.5 with train.batch_size 1', expected"):
        load_run(run)


def test_mixed_pairs_train(write_run) -> None:
    result = train(load_run(write_run(audio={"mix_augmentation": 1.0}, train={"steps": 1})))
    assert records(result.folder)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_min_snr_is_the_row_s_the_file_s_or_nobody_s(write_run) -> None:
    model = load_model(load_run(write_run()), torch.device("cpu"))

    def weighting(**likelihood: object) -> object:
        run = load_run(write_run(method="tango_sft", likelihood=likelihood))
        return make_likelihood(run.config.likelihood, model).weighting

    assert weighting() == MinSnr(5.0, "epsilon")
    assert weighting(snr_gamma=3.0, snr_form="exact") == MinSnr(3.0, "exact")
    plain = load_run(write_run()).config.likelihood
    assert make_likelihood(plain, model).weighting is None
    with pytest.raises(ConfigError, match=r"snr_form: got 'exact', expected likelihood.snr_gamma"):
        load_run(write_run(likelihood={"snr_form": "exact"}))


def test_labels_lie_on_the_latent_frames_of_the_model(write_run) -> None:
    run = load_run(write_run(method="densedpo", kind="segments"))
    model = load_model(run, torch.device("cpu"))
    assert frame_grid(run, model) == FrameGrid(16, 0.64)
    assert frame_grid(load_run(write_run()), model) is None


# ---------------------------------------------------------------------------------------------------- a run


def test_a_run_starts_at_log_2_and_leaves_sounds_to_hear_beside_the_base(write_run, tmp_path: Path) -> None:
    path = write_run(samples={"prompts": ["a hum", "a <low> hum"], "num_steps": 2, "every": 2})
    result = train(load_run(path))
    assert records(result.folder)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    samples = result.folder / "samples"
    assert sorted(path.name for path in samples.iterdir()) == [
        *("base", "step-00000002", "step-00000002.html", "step-00000003", "step-00000003.html")
    ]
    page = (samples / "step-00000003.html").read_text()
    for link in ("base/00.wav", "base/01.wav", "step-00000003/01.wav"):
        assert f'src="{link}"' in page
        assert (samples / link).stat().st_size > 1000
    assert "a &lt;low&gt; hum" in page
    assert (samples / "base/00.wav").read_bytes() != (samples / "step-00000003/00.wav").read_bytes()


def test_imitation_of_the_chosen_side_is_added_openly(write_run) -> None:
    plain, mixed = (
        train(load_run(write_run(f"w{weight:g}", objective={"beta": 2000.0, "sft_weight": weight})))
        for weight in (0.0, 1.0)
    )
    first, second = (records(result.folder)[0] for result in (plain, mixed))
    assert second["loss"] - first["loss"] > 0.05
    assert first["grad_norm"] != second["grad_norm"]


def test_imitation_is_judged_by_its_loss_and_weighs_noise_levels(write_run) -> None:
    plain, weighted = (
        train(load_run(write_run(name, method="tango_sft", likelihood=likelihood)))
        for name, likelihood in (("g", {"snr_gamma": 1e4}), ("w", {}))
    )
    assert "The loss went from" in plain.verdict[0]
    first, second = (records(result.folder)[0]["loss"] for result in (plain, weighted))
    assert second < 0.95 * first


def test_rows_without_a_label_in_time_are_listed_and_count_nowhere(write_run, sound_rows, tmp_path) -> None:
    lines = sound_rows("segments").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    del rows[0]["segments"]
    rows[1]["segments"] = [{"start": 0.0, "preference": "tie"}]
    source = sound_rows("segments").parent / "some.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(source), "max_bad_share": 1.0, "shuffle": False}
    result = train(load_run(write_run(method="densedpo", data=data, train={"steps": 1, "batch_size": 7})))
    (listed,) = [json.loads(line) for line in (result.folder / "quarantine.jsonl").read_text().splitlines()]
    assert listed["reason"] == "no_segments"
    assert records(result.folder)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_cached_run_equals_one_that_encodes_at_the_mean(write_run, tmp_path: Path, monkeypatch) -> None:
    from mmalign.audio.families.tango import Tango

    monkeypatch.setattr(Tango, "at_mean", True)
    encode_run(write_run("cache"), output=str(tmp_path / "latents"), dtype="float32")
    live = train(load_run(write_run("live", audio={"prompt_dropout": 0.3})))
    found = train(
        load_run(write_run("cached", audio={"prompt_dropout": 0.3, "cache": str(tmp_path / "latents")}))
    )
    for one, two in zip(records(live.folder), records(found.folder), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-3)
    moved = 0.0
    for name, value in live.trainables.parameters.items():
        torch.testing.assert_close(found.trainables.parameters[name], value, rtol=0, atol=2e-4)
        moved = max(moved, float(value.detach().abs().max()) if "lora_B" in name else 0.0)
    assert moved > 1e-3


def test_a_run_is_heard_and_exported_from_the_command_line(write_run, tmp_path: Path, capsys) -> None:
    result = train(load_run(write_run(train={"steps": 2})))
    output = tmp_path / "heard"
    words = ["sample", "--run", str(result.folder), "--prompt", "a hum", "--steps", "2", "--num-images", "2"]
    assert main([*words, "--output", str(output), "--device", "cpu"]) == 0
    assert sorted(path.name for path in (output / "tuned").iterdir()) == ["00.wav", "01.wav"]
    assert (output / "base/00.wav").read_bytes() != (output / "tuned/00.wav").read_bytes()
    assert 'src="tuned/01.wav"' in (output / "comparison.html").read_text()
    for to, name in (
        ("official", "main_config.json"),
        ("merged", "model_index.json"),
        ("peft", "adapter_config.json"),
    ):
        assert main(["export", str(result.folder), "--to", to, "--output", str(tmp_path / to)]) == 0
        assert (tmp_path / to / name).is_file()
    capsys.readouterr()
    assert main(["export", str(result.folder), "--to", "comfyui"]) == 2
    assert "expected of audio models: official, merged, peft" in capsys.readouterr().err
    assert main(["sample", "--run", str(result.folder), "--prompt", "x", "--temperature", "1"]) == 2
    assert "expected options of audio models" in capsys.readouterr().err
    assert main(["sample", "--run", str(result.folder), "--model", "x", "--prompt", "x"]) == 2
    assert "one of --model and --run" in capsys.readouterr().err


def test_a_plan_says_what_a_run_of_sound_needs(write_run, capsys) -> None:
    assert main(["train", str(write_run()), "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "none with audio.cache" in out
    assert "elements per sample: 2048" in out


class Deaf:
    """A reward of answers."""

    name = "reader"

    def score_answers(self, rows, answers):
        return [0.0 for _ in answers]


def online(write_run, method: str = "online_crpo"):
    rollout = {"reward": "module:function", "num_steps": 2, "samples": 2, "prompts": 2}
    return load_run(write_run(method, method=method, kind="prompts", rollout=rollout))


def test_a_reward_that_hears_nothing_is_refused(write_run) -> None:
    with pytest.raises(ConfigError, match=r"rollout.reward: got None, expected a reward of sounds"):
        train(online(write_run))
    with pytest.raises(ConfigError, match=r"got 'reader, which hears no sound', expected a reward of sounds"):
        train(online(write_run), reward=Deaf())


def test_a_method_that_climbs_gradients_of_a_reward_is_refused(write_run) -> None:
    reward = OnSounds(FunctionReward(lambda samples: [0.0] * len(samples), name="nothing"))
    with pytest.raises(ConfigError, match=r"got 'draft', expected a method that scores finished samples"):
        train(online(write_run, "draft"), reward=reward)


def test_sounds_reach_a_reward_as_they_were_made(clip) -> None:
    heard = []

    def listen(samples) -> list[float]:
        heard.extend(samples)
        return [float("nan") if sample.prompt == "b" else 2.0 for sample in samples]

    waves = torch.linspace(-1, 1, 2 * 2 * 400).reshape(2, 2, 400)
    found = OnSounds(FunctionReward(listen, name="listener")).score_waves(waves, 8000, ["a", "b"])
    assert found[0] == 2.0
    assert bool(found[1].isnan())
    decoded = decode_audio(heard[1].audio, where="sample", limits=AudioLimits(min_seconds=0.0))
    assert decoded.sampling_rate == 8000
    assert torch.equal(decoded.samples, waves[1])


def test_texts_of_announced_prompts_have_one_length_and_the_same_states(load_tango) -> None:
    model = load_tango()
    before = model.prompt_conditioning(["hum"]).shared
    model.make_room_for(["hum", "a long low hum with rain"])
    after = model.prompt_conditioning(["hum"]).shared
    length = before["text"].shape[1]
    assert after["text"].shape[1] == model.guidance_conditioning().shared["text"].shape[1] > length
    assert torch.equal(after["text"][:, :length], before["text"])
    assert not bool(after["text_mask"][:, length:].any())


def test_a_family_without_time_is_told_so(write_run, monkeypatch) -> None:
    from mmalign.audio.family import AudioModel

    run = load_run(write_run(method="densedpo", kind="segments"))
    model = load_model(run, torch.device("cpu"))
    monkeypatch.delattr(AudioModel, "time_axis")
    with pytest.raises(ConfigError, match=r"got 'tango', expected a family whose media have a time axis"):
        in_time(model)


def test_exports_that_do_not_exist_say_which_do(write_run, monkeypatch) -> None:
    from mmalign.audio import export
    from mmalign.audio.families.tango import Tango

    result = train(load_run(write_run(adapter={"kind": "none"}, train={"steps": 1})))
    assert (result.folder / "model" / "model_index.json").is_file()
    with pytest.raises(ConfigError, match="got 'peft of a fully trained model', expected --to merged"):
        export.main(result.folder, "peft")
    monkeypatch.delattr(Tango, "save_official")
    with pytest.raises(ConfigError, match=r"got 'official of tango', expected --to merged"):
        export.main(result.folder, "official")


def test_a_request_without_prompts_or_with_an_unreadable_file_is_refused(tango_folder, tmp_path) -> None:
    from mmalign.audio import comparing

    with pytest.raises(ConfigError, match="got 'no prompts'"):
        comparing.main(model=str(tango_folder))
    with pytest.raises(ConfigError, match=r"--prompts-file .*none.txt: cannot be read"):
        comparing.main(model=str(tango_folder), prompts_file=tmp_path / "none.txt")


# ------------------------------------------------------------------------------------------- slow: processes


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max((folder / "checkpoints").glob("step-*")) / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tango2_dpo", "densedpo"])
def test_a_killed_run_goes_on_bit_for_bit(write_run, tmp_path: Path, method: str) -> None:
    sections = {
        "method": method,
        "kind": "segments",
        "audio": {"prompt_dropout": 0.3},
        "train": {"steps": 14, "accumulation": 2, "ema_decay": 0.9, "checkpoint_every": 3},
    }
    killed = write_run("killed", **sections)
    command = [sys.executable, "-m", "mmalign", "train", str(killed)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        log, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 300
        while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "training_summary.json").exists()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    whole = train(load_run(write_run("whole", **sections)))
    one, two = weights_of(tmp_path / "killed"), weights_of(whole.folder)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [r["loss"] for r in records(tmp_path / "killed")] == [r["loss"] for r in records(whole.folder)]


@pytest.mark.slow
def test_two_processes_equal_one(write_run, tmp_path: Path) -> None:
    shared = {"steps": 3, "adam_epsilon": 1e-2}
    sections = {"method": "densedpo", "kind": "segments", "likelihood": {"stratified": True}}
    two = write_run("two", train={**shared, "batch_size": 2}, **sections)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "mmalign", "train", str(two)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    one = train(load_run(write_run("one", train={**shared, "batch_size": 4}, **sections)))
    got, expected = weights_of(tmp_path / "two"), weights_of(one.folder)
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)
