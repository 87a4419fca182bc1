"""The protocol: failures stay with their sample, options are checked; and the conformance suite can fail."""

from collections.abc import Sequence

import pytest
import torch

from mmalign import rewards
from mmalign.errors import ConfigError, RowError, ShapeError, UnknownNameError
from mmalign.rewards.base import ModelReward, Prepared, Reward
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample
from mmalign.testing.rewards import RewardConformance

CARD = Card(name="letters", title="letters of a prompt", modality="text", outputs=("letters", "spaces"))


class Letters(ModelReward):
    """Counts letters; what a test wants to be wrong is an argument."""

    def __init__(self, *, leak: float = 0.0, columns: int = 2, card: Card = CARD) -> None:
        super().__init__(card, device="cpu", dtype=torch.float32)
        self.leak = leak
        self.columns = columns
        self.calls: list[int] = []

    def prepare(self, sample: Sample) -> Prepared:
        if not sample.prompt:
            raise RowError("letters: got an empty prompt", reason="empty_prompt")
        return Prepared({"prompt": sample.prompt[:20]}, truncated=len(sample.prompt) > 20)

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        self.calls.append(len(batch))
        counts = [[len(one.inputs["prompt"]), one.inputs["prompt"].count(" ")] for one in batch]
        values = torch.tensor(counts, dtype=torch.float32)[:, : self.columns]
        values[values == 13] = torch.nan
        return values + self.leak * len(batch)

    def settings(self) -> dict[str, float]:
        return {"leak": self.leak}


def samples():
    return [Sample(text) for text in ("a cat", "", "two dogs and a very long tail", "b", "thirteen long")]


def test_failures_stay_with_their_sample():
    reward = Letters()
    assert isinstance(reward, Reward)
    for batch_size in (1, 2, 3, 9):
        found = reward.score(samples(), batch_size=batch_size)
        expected = torch.tensor(
            [[5, 1], [torch.nan] * 2, [20, 5], [1, 0], [torch.nan, 1]], dtype=torch.float64
        )
        torch.testing.assert_close(found.values, expected, equal_nan=True)
        assert found.errors == (
            None,
            "letters: got an empty prompt",
            None,
            None,
            "letters: the value is not finite",
        )
        assert found.truncated == (False, False, True, False, False)
        assert found.outputs == ("letters", "spaces")
        torch.testing.assert_close(found.first(), expected[:, 0], equal_nan=True)


def test_batches_hold_what_could_be_prepared_and_no_more_than_asked():
    reward = Letters()
    reward.score(samples(), batch_size=2)
    assert reward.calls == [1, 2, 1]
    reward.calls.clear()
    reward.score([Sample(""), Sample("")], batch_size=2)
    assert reward.calls == []


def test_an_answer_of_another_shape_is_an_error_of_ours():
    with pytest.raises(ShapeError, match=r"letters: got \[3, 1\], expected \[3, 2\], one row per sample"):
        Letters(columns=1).score(samples()[2:])


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"letters batch_size: got {batch_size}, expected at least 1"):
        Letters().score(samples(), batch_size=batch_size)


def test_fingerprint_is_a_hash_of_provenance():
    assert Letters().fingerprint() == Letters().fingerprint()
    assert Letters().fingerprint() != Letters(leak=1.0).fingerprint()
    newer = Letters()
    newer.code_version = 2
    assert newer.fingerprint() != Letters().fingerprint()


def test_names_cards_and_unknown_names():
    assert {"pickscore_v1", "hpsv2", "hpsv21", "clipscore", "aesthetic_v2"} <= set(rewards.names())
    assert rewards.card("hpsv21").scale.startswith("cosine")
    with pytest.raises(UnknownNameError, match=r"reward 'pickscore'. Did you mean pickscore_v1"):
        rewards.load("pickscore")


def test_unknown_options_and_dtypes_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"reward hpsv2 option: got 'resize', expected one of.*antialias, backend"
    ):
        rewards.load("hpsv2", weights=tmp_path, resize=True)
    with pytest.raises(ConfigError, match=r"reward pickscore_v1 option: got 'backend'.*\(none\)"):
        rewards.load("pickscore_v1", weights=tmp_path, backend="pil")
    with pytest.raises(ConfigError, match="reward dtype: got 'int8', expected float32, bfloat16 or float16"):
        rewards.load("hpsv2", weights=tmp_path, dtype="int8")


class Suite(RewardConformance):
    """The suite on a reward built by hand."""

    __test__ = False
    name = "letters"

    def samples(self) -> list[Sample]:
        return [Sample("a cat"), Sample("two dogs"), Sample("b")]

    bad_sample = Sample("")


def scored(reward):
    return reward.score(Suite().samples(), batch_size=1)


def test_the_suite_accepts_a_reward_that_keeps_the_contract():
    suite, reward = Suite(), Letters()
    suite.test_one_row_per_sample_and_one_column_per_output(reward, scored(reward))
    suite.test_no_value_depends_on_the_batch(reward, scored(reward), 2)
    suite.test_no_value_depends_on_order_or_company(reward, scored(reward))
    suite.test_a_bad_sample_is_nan_with_an_error_and_leaves_the_others_alone(reward, scored(reward))
    suite.test_preparation_is_deterministic_and_can_go_to_a_worker(reward)


def test_the_suite_notices_values_that_depend_on_batch_mates():
    suite, reward = Suite(), Letters(leak=0.01)
    for check in (
        lambda: suite.test_no_value_depends_on_the_batch(reward, scored(reward), 2),
        lambda: suite.test_no_value_depends_on_order_or_company(reward, scored(reward)),
        lambda: suite.test_a_bad_sample_is_nan_with_an_error_and_leaves_the_others_alone(
            reward, scored(reward)
        ),
    ):
        with pytest.raises(AssertionError, match="not close"):
            check()


def test_the_suite_notices_networks_that_train_or_carry_gradients():
    reward = Letters()
    reward.parts = {"network": torch.nn.Linear(2, 3)}
    with pytest.raises(AssertionError):
        Suite().test_networks_are_in_evaluation_mode_and_frozen(reward)
    reward.parts["network"].eval()
    with pytest.raises(AssertionError):
        Suite().test_networks_are_in_evaluation_mode_and_frozen(reward)
    reward.parts["network"].requires_grad_(False)
    Suite().test_networks_are_in_evaluation_mode_and_frozen(reward)


def test_the_suite_notices_a_tensor_path_that_the_card_denies():
    reward = Letters()
    reward.score_tensor = lambda pixels, prompts: pixels.sum((1, 2, 3))
    with pytest.raises(AssertionError, match="not differentiable"):
        Suite().test_score_tensor_equals_score_and_has_a_gradient(reward, scored(reward))
