import pytest

from mmalign.data.pair_making.rows import normalised_prompt
from mmalign.errors import ConfigError
from mmalign.evals.base import Item
from mmalign.evals.pairs.contamination import clean_prompts, read_excluded


def items(*prompts):
    return [Item(f"set/{number}", prompt) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    "other",
    ["a red fox", "A Red Fox!", " a  red\tfox. ", "a red_fox", "“a red fox”", "Ａ ｒｅｄ ｆｏｘ"],  # noqa: RUF001
)
def test_case_punctuation_spacing_and_forms_do_not_tell_prompts_apart(other):
    assert normalised_prompt(other) == normalised_prompt("a red fox")


def test_words_order_and_scripts_do():
    texts = ["a red fox", "a fox red", "un zorro", "ein Füchslein", "赤い狐", "🦊", "🐻", "!!!"]
    assert len({normalised_prompt(text) for text in texts}) == len(texts)


def test_prompts_of_held_out_sets_and_repetitions_go_and_are_counted():
    held = {"one": frozenset({"a fox", "an owl"}), "two": frozenset({"a fox"})}
    clean = clean_prompts(items("A fox.", "a heron", "a heron!", "an owl", "a pier"), held, ["three"])
    assert [item.prompt for item in clean.items] == ["a heron", "a pier"]
    assert (clean.read, clean.left_out, clean.repeated) == (5, 2, 1)
    assert clean.contaminated == {"one": 2, "two": 1}
    assert clean.checked == {"one": 2, "two": 1}
    assert clean.waived == ("three",)


def test_no_prompt_left_is_an_error():
    with pytest.raises(ConfigError, match="none of 1 is left; 1 stand in held-out sets"):
        clean_prompts(items("a fox"), {"one": frozenset({"a fox"})})


def test_held_out_sets_are_files_or_names(tmp_path):
    (tmp_path / "held.txt").write_text("A Fox!\n\nan owl\n")
    found = read_excluded([f"mine={tmp_path / 'held.txt'}", "held.txt"], folder=tmp_path)
    assert found == {"mine": frozenset({"a fox", "an owl"}), "held.txt": frozenset({"a fox", "an owl"})}


def test_a_public_set_that_is_not_here_must_be_given_or_waived():
    with pytest.raises(ConfigError, match=r"write exclude: \[hpdv2=FILE, ...\], or waived: \[hpdv2\]"):
        read_excluded(["hpdv2"])
    assert read_excluded(["hpdv2"], waived=["hpdv2"]) == {}


def test_what_is_waived_must_be_among_the_excluded():
    with pytest.raises(ConfigError, match="waived: hpd stands under no such name"):
        read_excluded(["hpdv2"], waived=["hpd"])
