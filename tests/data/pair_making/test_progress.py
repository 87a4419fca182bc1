"""What a run of a pair maker says when it is done."""

from collections import Counter
from pathlib import Path

from mmalign.data.pair_making.progress import print_made


def said(capsys, **counts: int) -> list[str]:
    print_made(Path("made/rows.jsonl"), Counter(counts))
    return capsys.readouterr().out.splitlines()


def test_what_rows_were_made_of_is_not_called_left_out(capsys):
    first, *_ = said(capsys, rows=3, clips=12, stretches=5, failed_clips=0, unanswered=0)
    assert first == "made/rows.jsonl: 3 rows, 12 clips, 5 stretches (nothing left out), card.yaml"
    first, *_ = said(capsys, rows=2, clips=4, sides_changed=1, tie_for_best=1)
    assert "4 clips, 1 sides_changed, 1 tie_for_best (nothing left out)" in first


def test_what_was_left_out_is_told_by_reason(capsys):
    lines = said(capsys, rows=1, clips=7, tie=2, damaged_video=3, still=0)
    assert lines[0] == "made/rows.jsonl: 1 rows, 7 clips (left out: 3 damaged_video, 2 tie), card.yaml"
    assert lines[-1] == "check them: mmalign data check made/rows.jsonl"


def test_what_got_no_answer_is_said_with_what_to_do(capsys):
    _, line, _ = said(capsys, rows=1, unanswered=2)
    assert line.startswith("2 got no answer this time (why: card.yaml): run the same command again")
