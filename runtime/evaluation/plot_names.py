"""Class names on matplotlib's figures: in fonts that have their letters, else told by code points."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from runtime.images.draw import spelled

_log = logging.getLogger(__name__)

_MOST = 18
"""Letters of a name that a legend or an axis has room for."""
_MOST_CODES = 30
"""Characters of one that is told by code points, six a letter."""


def plot_names(names: Iterable[str], most: int = _MOST) -> list[str]:
    """`names` as matplotlib can draw them where `set_fonts` has been called, each at most `most` letters long.

    A letter that no installed font has loses its accent or becomes its code point (`\\u8eca`), as in pictures.
    """
    names = list(names)
    lost = _fonts(_letters(names))[1]
    shown = []
    for name in names:
        drawn = "".join(c if c.isprintable() else " " for c in name)
        told = spelled(drawn, lambda letter: letter not in lost)
        limit = most if told == drawn else max(most, _MOST_CODES)
        told = told if len(told) <= limit else told[: limit - 1] + "…"
        shown.append(told.replace("$", r"\$"))  # matplotlib would read what stands between two of them as mathematics
    return shown


def set_fonts(figure: Any, names: Iterable[str]) -> None:
    """Let every text of a matplotlib `figure` that is there take letters of `names` from fonts that have them."""
    from matplotlib.text import Text

    families = _fonts(_letters(names))[0]
    for text in figure.findobj(Text) if families else ():
        text.set_fontfamily([*text.get_fontfamily(), *families])


def _letters(names: Iterable[str]) -> frozenset[str]:
    return frozenset(letter for letter in "".join(names) if letter.isprintable() and not letter.isascii())


@functools.lru_cache(64)
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of fonts to have beside matplotlib's own for `letters`, and the letters that no font has."""
    if not letters:
        return (), letters
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    missing = set(letters)
    for family in FontProperties().get_family():
        missing -= _held(findfont(FontProperties(family=[family])), missing)
    families: list[str] = []
    known = {entry.fname: entry.name for entry in fontManager.ttflist}
    for path in _font_files() if missing else ():
        if not missing:
            break
        if not _held(path, missing):
            continue
        if path not in known:  # installed after matplotlib listed the fonts
            fontManager.addfont(path)
            known = {entry.fname: entry.name for entry in fontManager.ttflist}
        # A family is asked for its upright form of normal weight, which may lack what another one of its files has.
        held = _held(findfont(FontProperties(family=[known[path]])), missing)
        families += [known[path]] * bool(held)
        missing -= held
    if missing:
        _log.warning(
            "no installed font has %s of the class names: plots tell these letters by their code points; install a "
            "font that has them (of Chinese, Japanese and Korean, on Debian: fonts-noto-cjk)",
            " ".join(sorted(missing)[:8]) + (" ..." if len(missing) > 8 else ""),
        )
    return tuple(families), frozenset(missing)


def _font_files() -> Iterator[str]:
    """Files of all fonts that are installed, or that the program gave to matplotlib."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    yield from sorted({*(entry.fname for entry in fontManager.ttflist), *findSystemFonts()})


def _held(path: str, letters: set[str]) -> set[str]:
    """Those of `letters` that the font at `path` has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # not a font that FreeType reads: others are asked
        return set()
    # Fonts of pictures (emoji) matplotlib does not draw; those of last resort hold a frame for every letter there is.
    if not font.scalable or "lastresort" in font.family_name.replace(" ", "").lower():
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}
