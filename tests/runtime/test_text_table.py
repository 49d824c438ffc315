from __future__ import annotations

from runtime.files.text_table import text_table


def test_a_head_alone():
    assert text_table(["run", "mAP"], [], {"run"}) == ["run  mAP"]


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["a", "1.0", "fails: lost"], ["long name", "10.25", ""]]
    assert text_table(["run", "mAP", "gate"], rows, {"run", "gate"}) == [
        "run          mAP  gate",
        "a            1.0  fails: lost",
        "long name  10.25",
    ]
