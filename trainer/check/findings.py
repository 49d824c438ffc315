"""A finding of `trainer check-data`: what is wrong or doubtful in a data set, for people and for scripts.

`KINDS` lists every finding there is. Its ids are stable, since scripts compare them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
Where = Literal["train", "val", "both"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: a picture or its annotations are lost, or val mAP will be wrong. warning: probably a mistake. note: a fact."""
_SHOWN, _IN_JSON = 3, 5


class Kind(NamedTuple):
    severity: Severity
    advice: str


_REMOVE_IN_ONE = "remove them from one of the splits, or let `trainer new --val-share` divide the pictures"

KINDS = {
    "same-pictures-across-splits": Kind("error", _REMOVE_IN_ONE),
    "broken-pictures": Kind("error", "replace these files from their source, or remove them and their annotations"),
    "wrong-size": Kind("error", "export the annotations again from the pictures that lie here"),
    "annotations-without-picture": Kind("error", "copy the missing pictures, or name their folder as data.*.images"),
    "broken-annotations": Kind("error", "export these annotations again, or remove the entries"),
    "near-duplicates-across-splits": Kind("warning", _REMOVE_IN_ONE),
    "pictures-without-annotation": Kind("warning", "annotate them, or move them out of the folder"),
    "pictures-in-no-split": Kind("warning", "append their names to one of the lists that data.*.pictures names"),
    "voc-origins-differ": Kind("warning", "set data.*.voc_origin of both splits"),
    "unread-files": Kind("warning", "convert them to JPEG or PNG, or move them out of the folder"),
    "unusable-boxes": Kind("warning", "correct these boxes in the annotation tool; they are not trained on"),
    "clipped-boxes": Kind("warning", "look whether these boxes are shifted against their objects"),
    "unknown-classes": Kind("warning", "add the class to the class list of the annotations, or correct its name"),
    "doubtful-flags": Kind("warning", "write iscrowd and difficult as 0 or 1"),
    "doubtful-rotations": Kind("warning", "write the rotation in degrees, or take it out"),
    "doubtful-origin": Kind("warning", "set data.*.voc_origin: 0 where the annotation tool counts pixels from 0"),
    "borrowed-pictures": Kind("warning", "correct <filename> in these .xml files"),
    "other-problems": Kind("warning", "look at these annotations"),
    "boxes-of-one-pixel": Kind("warning", "remove these boxes in the annotation tool"),
    "boxes-twice": Kind("warning", "remove the second box: the loss counts it twice, and evaluation misses it once"),
    "pictures-twice": Kind("warning", "put the annotations of each file into one entry"),
    "identical-pictures": Kind("warning", "keep one file of each group, with all of its boxes"),
    "class-missing-in-train": Kind("warning", "add pictures of the class, or remove it from model.classes"),
    "class-missing-in-val": Kind("warning", "add pictures of the class: without any, nothing measures how it does"),
    "label-skew": Kind("warning", "add pictures of the rare classes, or set data.sampling: class_balanced"),
    "small-objects": Kind("warning", "a larger model.input_size_hw would show more of them"),
    "near-duplicates-within-split": Kind("note", "keep each group on one side when you divide the pictures anew"),
    "pictures-without-objects": Kind("note", "right for background; else annotate them, or set data.empty_images"),
    "rotated-boxes": Kind("note", "their upright bounds are larger than the objects"),
    "other-classes": Kind("note", "add them to model.classes to train on them"),
}  # fmt: skip
"""Every finding by its id, the most harmful first."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split.

    id: a key of `KINDS`.
    split: where it is; both: in the two of them together.
    count: how many pictures, boxes, classes or files have it; `text` says which.
    text: what it is, with the count.
    examples: paths, annotations or classes that have it.
    advice: what to do.
    shown: the examples as a line of text shows them; those that are paths lack their folders there.
    """

    id: str
    severity: Severity
    split: Where
    count: int
    text: str
    examples: tuple[str, ...]
    advice: str
    shown: tuple[str, ...]

    def line(self) -> str:
        """The finding in one line, with its first examples."""
        split = "" if self.split == "both" else f"{self.split}: "
        return f"{split}{self.text}{': ' if self.shown else ''}{examples(self.shown)}"

    def to_json(self) -> dict[str, Any]:
        """The finding without `shown`, with five examples at most."""
        content = asdict(replace(self, examples=self.examples[:_IN_JSON]))
        return {key: value for key, value in content.items() if key != "shown"}


def finding(
    id: str, split: Where, count: int, text: str, rows: Iterable[str], shown: Iterable[str] | None = None,
    severity: Severity | None = None,
) -> Finding:  # fmt: skip
    """The finding `id` with its advice, and its severity unless another one is given. `rows` are its examples, each
    taken once; `shown` is their text in a line where that differs."""
    rows = tuple(dict.fromkeys(rows))
    texts = rows if shown is None else tuple(dict.fromkeys(shown))
    kind = KINDS[id]
    return Finding(id, severity or kind.severity, split, count, text, rows, kind.advice, texts)


def counted(count: int, one: str, many: str) -> str:
    """'1 file is', '2 files are': `count` before what is said of one or of any other number."""
    return f"{count} {one if count == 1 else many}"


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with one entry for each id and split, the most harmful first."""
    by_key: dict[tuple[str, Where], Finding] = {}
    for item in findings:
        first = by_key.get((item.id, item.split))
        by_key[item.id, item.split] = item if first is None else replace(
            first, count=first.count + item.count, text=f"{first.text} and {item.text}",
            examples=first.examples + item.examples, shown=first.shown + item.shown,
            severity=min(first.severity, item.severity, key=SEVERITIES.index),
        )  # fmt: skip
    ids = list(KINDS)
    return sorted(by_key.values(), key=lambda item: (SEVERITIES.index(item.severity), ids.index(item.id)))


def summary(findings: Sequence[Finding]) -> str:
    """The line '1 error, 0 warnings, 2 notes'."""
    counts = Counter(item.severity for item in findings)
    return ", ".join(counted(counts[name], name, f"{name}s") for name in SEVERITIES)


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    """1 where a finding is an error, or with `strict` a warning; else 0."""
    failing = SEVERITIES[:2] if strict else SEVERITIES[:1]
    return int(any(item.severity in failing for item in findings))


def examples(rows: Sequence[str]) -> str:
    """The first three of `rows`, and how many more there are."""
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(rows[:_SHOWN]) + more
