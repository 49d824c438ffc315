from __future__ import annotations

from dataclasses import dataclass

from isodet.field_docs import field_docs


def test_no_docstring_no_fields():
    @dataclass
    class Bare:
        size: int = 0

    assert field_docs(Bare) == {}  # the docstring that dataclass makes up names no field


def test_a_text_runs_to_the_next_field_or_an_empty_line():
    @dataclass
    class Options:
        """How it is read: queue: not a field's text.

        queue: Frames ahead,
            on two lines.
        every: Each n-th: as said.

        What follows belongs to none. other: neither.
        other: is no field.
        """

        queue: int = 4
        every: int = 1
        untold: int = 0

    assert field_docs(Options) == {"queue": "Frames ahead, on two lines.", "every": "Each n-th: as said."}


def test_fields_of_a_base_are_told_by_the_base_unless_told_again():
    @dataclass
    class Base:
        """x: One.
        y: Two.
        """

        x: int = 0
        y: int = 0

    @dataclass
    class Derived(Base):
        """y: Three."""

    assert field_docs(Derived) == {"x": "One.", "y": "Three."}
