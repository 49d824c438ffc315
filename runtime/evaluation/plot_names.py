"""Class names on matplotlib's figures: in fonts that have their letters, else written as code points."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from runtime.images.draw import transliterated

_log = logging.getLogger(__name__)

_MOST = 18
"""Letters of a name that a legend or an axis has room for."""
_MOST_CODES = 30
"""Characters of a name with code points, which are six characters a letter."""


def plot_names(names: Iterable[str], most: int = _MOST) -> list[str]:
    """`names` as matplotlib can draw them where `set_fonts` has been called, each at most `most` letters long.

    A letter that no installed font has loses its accent or becomes its code point (`\\u8eca`), as in pictures.
    """
    names = list(names)
    lost = _fonts(_letters(names))[1]
    shown = []
    for name in names:
        drawn = "".join(c if c.isprintable() else " " for c in name)
        text = transliterated(drawn, lambda letter: letter not in lost)
        limit = most if text == drawn else max(most, _MOST_CODES)
        text = text if len(text) <= limit else text[: limit - 1] + "…"
        shown.append(text.replace("$", r"\$"))  # matplotlib would read the text between two of them as mathematics
    return shown


def set_fonts(figure: Any, names: Iterable[str]) -> None:
    """Give every text of a matplotlib `figure` the fonts that have the letters of `names`."""
    from matplotlib.text import Text

    families = _fonts(_letters(names))[0]
    for text in figure.findobj(Text) if families else ():
        text.set_fontfamily([*text.get_fontfamily(), *families])


def _letters(names: Iterable[str]) -> frozenset[str]:
    return frozenset(letter for letter in "".join(names) if letter.isprintable() and not letter.isascii())


@functools.lru_cache(64)
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of fonts that `letters` need besides matplotlib's own, and the letters that no font has."""
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
        # matplotlib takes the upright file of normal weight of a family, which may lack letters of its other files.
        held = _held(findfont(FontProperties(family=[known[path]])), missing)
        if held:
            families.append(known[path])
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
    """The `letters` that the font at `path` has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # FreeType cannot read this font: other fonts may have the letters
        return set()
    # matplotlib cannot draw fonts of pictures (emoji). Fonts of last resort have an empty frame for every letter.
    if not font.scalable or "lastresort" in font.family_name.replace(" ", "").lower():
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}
