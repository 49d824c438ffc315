"""Class names on plots: letters come from fonts that have them, or are told; matplotlib never draws an empty box."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest import LogCaptureFixture, MonkeyPatch

from runtime.evaluation import plot_names as subject
from runtime.evaluation.plot_names import plot_names, set_fonts

pytest.importorskip("matplotlib", reason="matplotlib, of the extras train and export, is not installed")

from matplotlib import font_manager, get_data_path
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

OWN = Path(get_data_path()) / "fonts" / "ttf"
"""Fonts that come with matplotlib; none has Chinese, Japanese or Korean."""


@pytest.fixture(autouse=True)
def own_fonts(monkeypatch: MonkeyPatch) -> Iterator[None]:
    """Whatever is installed on this machine, matplotlib's own fonts are all there is."""
    own = [entry for entry in font_manager.fontManager.ttflist if OWN in Path(entry.fname).parents]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    subject._fonts.cache_clear()
    yield
    subject._fonts.cache_clear()


@pytest.fixture
def letter() -> str:
    """One that matplotlib's usual font lacks, and another one of its own has."""
    usual = FT2Font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    other = FT2Font(str(OWN / "STIXGeneral.ttf")).get_charmap()
    return next(chr(code) for code in sorted(other) if code not in usual and chr(code).isalpha())


def drawn(names: list[str], fonts: bool = True) -> list[str]:
    """Draws a legend and an axis of `names`; what matplotlib warns of."""
    figure = Figure()
    axes = figure.add_subplot()
    for name in names:
        axes.plot([0, 1], label=name)
    axes.set_xticks(range(len(names)), names)
    axes.legend()
    if fonts:
        set_fonts(figure, names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO(), format="png")
    return [str(one.message) for one in caught]


def test_a_letter_comes_from_a_font_that_has_it(letter: str, caplog: LogCaptureFixture) -> None:
    assert plot_names([letter]) == [letter] and not caplog.records
    assert "missing from" in " ".join(drawn([letter], fonts=False))
    assert drawn([letter, "łódź"]) == []


def test_a_font_that_came_after_matplotlib_listed_them(letter: str, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [entry for entry in manager.ttflist if entry.name != "STIXGeneral"])
    assert plot_names([letter]) == [letter.encode("ascii", "backslashreplace").decode()]
    subject._fonts.cache_clear()
    new, broken = tmp_path / "new.ttf", tmp_path / "broken.ttf"
    shutil.copy(OWN / "STIXGeneral.ttf", new)
    broken.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), str(new)])
    assert plot_names([letter]) == [letter] and drawn([letter]) == []


def test_letters_that_no_font_has_are_told(caplog: LogCaptureFixture) -> None:
    names = ["汽车", "汽船", "한국", "a$b$", "two\nlines", "x" * 19, "汽" * 19]
    told = [r"\u6c7d\u8f66", r"\u6c7d\u8239", r"\ud55c\uad6d", r"a\$b\$", "two lines", "x" * 17 + "…"]
    shown = plot_names(names)
    assert shown[:-1] == told and shown[-1] == r"\u6c7d" * 4 + r"\u6c7…"
    assert drawn(shown) == [] and len(caplog.messages) == 1
    assert "no installed font has" in caplog.messages[0] and "fonts-noto-cjk" in caplog.messages[0]
