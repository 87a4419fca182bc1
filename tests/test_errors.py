"""Error classes and the form of their messages."""

import pickle

import pytest

from mmalign import errors
from mmalign.errors import MmalignError, RowError, explain, unknown_name


def test_message_says_where_got_expected_and_what_to_do():
    assert explain("rows.jsonl:118 label_0", got=0.5, expected="0 or 1", do="Set data.tie_policy.") == (
        "rows.jsonl:118 label_0: got 0.5, expected 0 or 1. Set data.tie_policy."
    )
    assert explain("beta", got="high", expected="a number") == "beta: got 'high', expected a number."


def test_shapes_are_shown_without_quotes():
    assert explain("clean", got="[3, 2]", expected="[3, 5]") == "clean: got [3, 2], expected [3, 5]."


def test_unknown_name_lists_near_and_all_names():
    error = unknown_name("family", "sdxxl", ["sd15", "sdxl", "flux"])
    assert str(error) == "unknown family 'sdxxl'. Did you mean sdxl? Known: flux, sd15, sdxl."


def test_unknown_name_without_any_known_says_so():
    assert str(unknown_name("reward", "clip", [])) == "unknown reward 'clip'. Known: none."


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("RowError", ValueError),
        ("ShapeError", ValueError),
        ("HyperparameterError", ValueError),
        ("MissingExtraError", ImportError),
        ("CheckpointError", RuntimeError),
        ("TrainingError", RuntimeError),
        ("UnknownNameError", LookupError),
    ],
)
def test_every_error_is_ours_and_the_matching_built_in(name, builtin):
    kind = getattr(errors, name)
    assert issubclass(kind, MmalignError)
    assert issubclass(kind, builtin)
    assert str(kind("what happened")) == "what happened"
    assert name in errors.__all__


def test_row_error_crosses_processes_with_its_reason():
    sent = pickle.loads(pickle.dumps(RowError("image is truncated", reason="unreadable_image")))
    assert isinstance(sent, RowError)
    assert str(sent) == "image is truncated"
    assert sent.reason == "unreadable_image"
    assert RowError("x").reason == "invalid_row"


def test_an_unknown_name_among_very_many_shows_the_nearest_and_the_command_that_lists_them() -> None:
    many = [f"loss_{number:03}" for number in range(41)]
    assert str(unknown_name("objective", "loss_0071", many)).startswith(
        "unknown objective 'loss_0071'. Did you mean loss_007"
    )
    assert str(unknown_name("method", "qqqq", many)) == "unknown method 'qqqq'. `mmalign methods` lists all."
    assert "Known: loss_000" in str(unknown_name("reward", "qqqq", many))
    assert "Known: loss_000" in str(unknown_name("objective", "qqqq", many[:40]))
