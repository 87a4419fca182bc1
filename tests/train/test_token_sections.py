"""What the configuration of a language model may say, what its row fills, and what is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mmalign.errors import ConfigError
from mmalign.train.config import resolve, resolved_content
from mmalign.train.loader import Layout
from mmalign.train.memory_advice import out_of_memory
from mmalign.train.run_identity import identity_of
from mmalign.train.token_sections import TokenRunConfig, TokensConfig

LAYOUT = Layout(batch_size=2, accumulation=3)


@pytest.fixture
def content(tmp_path: Path):
    """`content(method="dpo", family="llava", **sections)`: nested settings; no model is loaded."""

    def make(method: str = "dpo", family: str = "llava", **sections):
        return {
            "method": method,
            "model": {"family": family, "source": "nowhere"},
            "data": {"source": "rows.jsonl"},
            "train": {"output": str(tmp_path / "run")},
            **sections,
        }

    return make


def test_a_language_model_takes_what_its_row_leaves_open_from_the_settings_of_all(content) -> None:
    run = resolve(content())
    assert isinstance(run.config, TokenRunConfig)
    assert (run.config.train.epochs, run.config.train.warmup_ratio, run.config.train.learning_rate) == (
        1,
        0.1,
        1e-5,
    )
    assert (run.config.train.steps, run.config.train.warmup_steps) == (None, None)
    assert run.objective_arguments["beta"] == 0.1
    assert {run.filled[f"train.{name}"].mark for name in ("epochs", "warmup_ratio", "learning_rate")} == {
        "ours"
    }


def test_a_row_wins_over_the_settings_of_all_and_the_file_over_the_row(content) -> None:
    run = resolve(content("mdpo", train={"output": "x", "steps": 5, "warmup_steps": 1}))
    train = run.config.train
    assert (train.steps, train.epochs, train.warmup_steps, train.warmup_ratio) == (5, None, 1, None)
    assert run.config.likelihood.kind == "tokens"
    assert run.config.tokens.corruption.kind == "crop"  # type: ignore[attr-defined]
    assert "tokens.corruption.kind" in run.filled
    assert (train.weight_decay, train.adam_beta2, train.schedule) == (0.05, 0.98, "cosine")
    assert (run.config.adapter.rank, run.config.adapter.alpha) == (64, 128)
    assert run.filled["adapter.rank"].mark == run.filled["train.weight_decay"].mark == "code"
    given = {"output": "x", "weight_decay": 0.01, "schedule": "constant"}
    other = resolve(content("mdpo", train=given, adapter={"rank": 8}))
    differences = {item.setting: (item.value, item.row_value) for item in other.differences}
    assert differences["adapter.rank"] == (8, 64)
    assert differences["train.weight_decay"] == (0.01, 0.05)
    assert differences["train.schedule"] == ("constant", "cosine")
    assert "adapter.rank" not in other.filled


def test_an_alpha_of_the_row_goes_with_the_rows_rank_alone(content) -> None:
    assert resolve(content("mdpo", adapter={"rank": 8})).config.adapter.alpha is None
    assert resolve(content("mdpo", adapter={"rank": 64})).config.adapter.alpha == 128
    assert resolve(content("mdpo", adapter={"alpha": 7.0})).config.adapter.alpha == 7.0
    full = resolve(content("mdpo", adapter={"kind": "none"}))
    assert (full.config.adapter.rank, full.config.adapter.alpha) == (8, None)
    assert "adapter.rank" not in full.filled
    # What was resolved stays as it is when it is read again.
    run = resolve(content("mdpo"))
    assert resolve(resolved_content(run)).config.adapter == run.config.adapter


def test_rows_are_dialogues_unless_the_file_says_otherwise(content) -> None:
    assert resolve(content()).config.data.source.media == "dialogue"  # type: ignore[union-attr]
    given = content(data={"source": {"path": "rows.jsonl", "media": "image"}})
    assert resolve(given).config.data.source.media == "image"  # type: ignore[union-attr]
    several = content(data={"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]})
    assert {source.media for source in resolve(several).config.data.sources} == {"dialogue"}


def test_steps_and_epochs_together_are_refused(content) -> None:
    with pytest.raises(ConfigError, match="set steps or epochs, not both"):
        resolve(content(train={"output": "x", "steps": 5, "epochs": 1}))
    with pytest.raises(ConfigError, match="set warmup_steps or warmup_ratio, not both"):
        resolve(content(train={"output": "x", "warmup_steps": 5, "warmup_ratio": 0.1}))


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("image", "image sizes are settings of the section tokens"),
        ("safeguard", "denoising errors, of which a language model has none"),
        ("samples", "answers to prompts are set in the section answers"),
    ],
)
def test_sections_of_image_models_are_refused_with_their_counterpart(content, section, reason) -> None:
    with pytest.raises(ConfigError, match=f"for a language model: {section}: .*{reason}"):
        resolve(content(**{section: {}}))


def test_a_section_that_does_not_exist_is_refused(content) -> None:
    with pytest.raises(ConfigError, match="token: unknown key"):
        resolve(content(token={}))


def test_methods_of_the_other_kind_of_model_are_refused_both_ways(content) -> None:
    with pytest.raises(ConfigError, match=r"'diffusion_dpo' is for image models, .* one of language models"):
        resolve(content("diffusion_dpo"))
    with pytest.raises(ConfigError, match=r"'mdpo' is for language models, .* one of image models"):
        resolve(content("mdpo", "sd15", image={"resolution": 64}))


def test_an_input_that_nobody_supplies_is_named(content) -> None:
    with pytest.raises(ConfigError, match="'beta_dpo' needs selected of every candidate"):
        resolve(content("beta_dpo"))


def test_a_corruption_that_no_view_uses_is_refused(content) -> None:
    given = {"corruption": {"kind": "crop"}}
    assert resolve(content("mdpo", tokens=given)).config.tokens.corruption.kind == "crop"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"tokens.corruption: got .*method dpo compares with no corrupted"):
        resolve(content(tokens=given))


def test_settings_of_timesteps_mean_nothing_to_tokens(content) -> None:
    with pytest.raises(ConfigError, match=r"likelihood: got .*timesteps.*no settings: log-probabilities"):
        resolve(content(likelihood={"timesteps": "logit_normal"}))
    with pytest.raises(ConfigError, match=r"likelihood.kind: got 'elbo', expected auto: .* stands on tokens"):
        resolve(content(likelihood={"kind": "elbo"}))


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("tdpo2", "reads kl, for which the reference has to run"),
        ("mallows_dpo", "reads reference_entropy"),
        ("mdpo", "images are corrupted anew at every visit"),
        ("tr_dpo", r"its reference moves \(synced\)"),
    ],
)
def test_what_cannot_be_computed_before_training_refuses_stored_references(content, method, reason) -> None:
    with pytest.raises(ConfigError, match=f"reference.kind: got 'stored', expected auto.*{reason}"):
        resolve(content(method, reference={"kind": "stored"}))


def test_pixels_frames_and_rates_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_pixels 5 is above max_pixels 3"):
        TokensConfig(min_pixels=5, max_pixels=3)
    with pytest.raises(ValidationError, match="set num_frames or fps, not both"):
        TokensConfig(num_frames=5, fps=2)
    for part in ("vision", "projector"):
        with pytest.raises(ValidationError, match=f"of a part that does not train: set train_{part}"):
            TokensConfig.model_validate({f"{part}_learning_rate": 1e-6})


def test_pictures_of_prompts_that_are_not_there_are_refused_before_training(content, tmp_path: Path) -> None:
    missing = {"prompts": ["What is it?", {"prompt": "And this?", "images": [str(tmp_path / "no.png")]}]}
    with pytest.raises(ConfigError, match=r"answers.prompts: got the path .*no.png, expected a file"):
        resolve(content(answers=missing))
    kept = resolve(content(answers={"prompts": ["What is it?"]})).config.answers  # type: ignore[attr-defined]
    assert kept.prompts[0].prompt == "What is it?"


def test_the_written_configuration_is_the_same_run_again(content) -> None:
    run = resolve(content("mdpo", tokens={"max_pixels": 7000, "head_chunk": 5}))
    again = resolve(resolved_content(run))
    assert again.config.model_copy(update={"objective": {}}) == run.config
    assert again.objective_arguments == run.objective_arguments


def test_settings_of_tokens_that_change_numbers_make_another_run(content) -> None:
    def identity(**tokens):
        return identity_of(resolve(content(tokens=tokens)), LAYOUT, "adapters_off", 7)

    same = {"head_chunk": 5, "packing": "plain", "share_vision": "off"}
    assert identity(**same) == identity()
    for name, value in {
        "max_length": 50,
        "max_completion_length": 5,
        "fit": "drop",
        "max_pixels": 3000,
        "num_frames": 3,
        "system_prompt": "Look.",
        "train_vision": True,
    }.items():
        assert identity(**{name: value}) != identity(), name
    assert identity()["image"] is None


def test_an_image_model_has_no_settings_of_tokens(make_run) -> None:
    identity = identity_of(make_run(), LAYOUT, "adapters_off", 7)
    assert identity["tokens"] is None
    assert identity["image"]["resolution"]


def test_advice_for_too_little_memory_speaks_of_dialogues(content) -> None:
    advice = out_of_memory(resolve(content(tokens={"max_pixels": 7000})))
    assert "tokens.max_pixels=3500, or tokens.max_frames=32" in advice
    assert "tokens.max_completion_length" in advice
    assert "image.cache" not in advice
