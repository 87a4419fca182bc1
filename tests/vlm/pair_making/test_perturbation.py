"""Perturbed captions, words and videos."""

import math

import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.vlm.pair_making.bias_driven import BiasConfig, bias_driven, sentences_of, swapped
from mmalign.vlm.pair_making.perturbation import (
    MISTAKES,
    clips_of,
    keeps,
    perturbed,
    perturbed_words,
    select_clip,
    temple_pairs,
    token_divergence,
)


def test_frames_go_in_twos_and_none_stays_alone() -> None:
    assert clips_of(["a", "b", "c", "d", "e"]) == [("a", "b"), ("c", "d", "e")]
    assert clips_of(["a"]) == [("a",)]


def test_captions_are_dropped_reversed_and_shuffled_in_groups() -> None:
    captions = list("abcdefgh")
    kept = perturbed(captions, "drop", 4, seed=1)
    assert len(kept) == 2
    assert kept == sorted(kept)
    assert perturbed(captions, "reverse", 4, seed=1) == list("ghefcdab")
    mixed = perturbed(captions, "shuffle", 2, seed=1)
    assert mixed == list("efghabcd")
    assert perturbed(captions, "drop", 16, seed=1)[0] in captions


def test_summaries_are_kept_by_their_lengths() -> None:
    assert keeps("drop", "a long text", "a text")
    assert not keeps("drop", "a text", "a long text")
    assert not keeps("drop", "a long text", "long")
    assert keeps("shuffle", "abcd", "abcdef")
    assert not keeps("shuffle", "abcd", "abcdefg")
    assert not keeps("reverse", "abcd", "abcd ")


def test_a_video_gives_one_pair_per_difficulty(row, scripted, stages) -> None:
    describe = scripted(lambda request, number: f"moment {number} of the video.")
    summarise = scripted(lambda request, number: request.row.prompt.split("\n\n")[-1])
    frames = [[bytes([place]) for place in range(16)]]
    pairs, counts = temple_pairs(
        [row("v")],
        frames,
        describe=describe,
        summarise=summarise,
        stages=stages,
        difficulties=(8, 4, 2),
    )
    assert len(describe.asked) == 8
    assert describe.asked[1].row.videos == ((b"\x02", b"\x03"),)
    assert not summarise.asked[0].row.images
    assert len(pairs) + counts.total() - counts["rows"] == 3
    assert {pair.columns["difficulty"] for pair in pairs} <= {8, 4, 2}
    for pair in pairs:
        assert pair.chosen.splitlines() == [f"moment {number} of the video." for number in range(8)]
        assert pair.rejected != pair.chosen
    again, _ = temple_pairs(
        [row("v")],
        frames,
        describe=describe,
        summarise=summarise,
        stages=stages,
        difficulties=(8, 4, 2),
    )
    assert again == pairs
    assert len(describe.asked) == 8


def test_mistakes_of_all_kinds_are_written_into_true_answers(row, scripted, stages) -> None:
    def rewrite(request, number: int) -> str:
        assert not request.row.images
        return "" if "truth 3" in request.row.prompt else "a lie"

    rows = [row(str(number), truth=f"truth {number}") for number in range(9)]
    pairs, counts = perturbed_words(rows, scripted(rewrite), stages)
    assert counts == {"rows": 8, "empty_or_equal": 1}
    assert {pair.columns["mistake"] for pair in pairs} == set(MISTAKES)
    assert (pairs[0].chosen, pairs[0].rejected) == ("truth 0", "a lie")


# --- the selector of videos ---------------------------------------------------------------------------------


def test_the_divergence_of_distributions_lies_between_zero_and_log_two() -> None:
    first = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
    second = torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
    assert token_divergence(first, first).item() == pytest.approx(0.0, abs=1e-12)
    # Disjoint at the first token, equal at the second.
    assert token_divergence(first, second).item() == pytest.approx(math.log(2) / 2)


def test_the_most_divergent_clip_among_the_close_ones_is_chosen() -> None:
    divergences = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    cosines = torch.tensor([0.9, 0.8, 0.2], dtype=torch.float64)
    chosen = select_clip(divergences, cosines, least_cosine=0.5)
    assert chosen.place == 1
    assert chosen.weight == pytest.approx(0.3 / math.log(2))
    assert select_clip(divergences, cosines, least_cosine=0.95).place is None
    with pytest.raises(HyperparameterError, match="least_cosine: got 2"):
        select_clip(divergences, cosines, least_cosine=2.0)


# --- bias ---------------------------------------------------------------------------------------------------


def test_sentences_are_split_at_full_stops() -> None:
    assert sentences_of("Yes. It is 3.5 m!  Is it? A cat") == ["Yes.", "It is 3.5 m!", "Is it?", "A cat"]
    assert sentences_of(" ") == []


def test_a_leading_yes_becomes_a_no() -> None:
    assert swapped("Yes, it is.") == "No, it is."
    assert swapped("no") == "yes"
    assert swapped("Nobody is here.") == "Nobody is here."


def never(first, second) -> list[float]:
    return [0.0] * len(first)


def test_sentences_are_continued_behind_the_true_ones_with_the_image_hidden(row, scripted, stages) -> None:
    write = scripted(lambda request, number: "guess.")
    truth = "One two three. Four five six."
    pairs, counts = bias_driven([row("a", truth=truth)], write, never, stages)
    first, second = write.asked
    assert first.hidden == second.hidden == 0.99
    assert first.stop_at_sentence
    assert "One two three.".startswith(first.prefix)
    assert second.prefix.startswith("One two three.")
    assert truth.startswith(second.prefix)
    assert (
        pairs[0].rejected == f"{first.prefix} guess. {second.prefix[15:]} guess.".replace("  ", " ").strip()
    )
    assert pairs[0].columns == {"rounds": [1, 1], "similarity": [0.0, 0.0]}
    assert counts == {"rows": 1}


def test_what_comes_out_too_similar_is_drawn_again_and_at_last_written_anew(row, scripted, stages) -> None:
    write = scripted(lambda request, number: f"guess {number}.")

    def like_the_first(first, second) -> list[float]:
        return [0.99 if truth.startswith("One") else 0.5 for truth in first]

    truth = "One two three four five six. Seven eight."
    pairs, _ = bias_driven([row("a", truth=truth)], write, like_the_first, stages)
    assert pairs[0].columns["rounds"] == [5, 1]
    assert len(write.asked) == 6
    assert write.asked[-1].prefix == ""
    assert pairs[0].rejected.startswith("guess 5. ")
    assert len(set(write.seeds)) == 5


def test_a_leading_yes_is_swapped_in_half_of_the_rows(row, scripted, stages) -> None:
    write = scripted(lambda request, number: "it is.")
    rows = [row(str(number), truth="Yes, that is so.") for number in range(60)]
    pairs, _ = bias_driven(rows, write, never, stages)
    swaps = [request.prefix.startswith("No,") for request in write.asked]
    assert 15 < sum(swaps) < 45
    assert all(pair.rejected.startswith("No,") for pair, swap in zip(pairs, swaps, strict=True) if swap)


def test_settings_of_bias_are_checked() -> None:
    with pytest.raises(HyperparameterError, match=r"bias_driven hidden: got 1\.5"):
        BiasConfig(hidden=1.5)
    with pytest.raises(HyperparameterError, match="bias_driven rounds"):
        BiasConfig(rounds=0)
