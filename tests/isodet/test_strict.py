from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest

from isodet.errors import ArgumentError, IsodetError
from isodet.strict import ConfigError, CustomName, UnknownKeyError, build, require, to_mapping


class Ends(TypedDict):
    low: float
    high: float


class Span(Ends, total=False):
    name: str


@dataclass(frozen=True)
class Part:
    rate: float = 0.1
    kind: Literal["sgd", "adam"] | CustomName = "sgd"

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", "a positive number", self.rate)
        if self.kind == "adam" and self.rate == 1:
            raise ConfigError("kind: adam does not take this rate")
        if self.rate == 7:
            raise ConfigError("seven is nobody's rate: really")

    OLD_NAMES = {"speed": "rate"}


@dataclass(frozen=True)
class Window:
    """A class that users make themselves, too."""

    side: int = 8

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ArgumentError.of("Window.side", f"expected pixels, got {self.side}")


@dataclass(frozen=True)
class Config:
    size: tuple[int, int]
    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    span: Span | None = None
    window: Window | None = None


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"size": [1]}, "size", "size: expected a list of 2 values (a whole number, a whole number), got [1] (list)"),
        ({"part": 3}, "part", "part: expected a mapping of keys, got 3 (int)"),
        ({"part": {"rate": True}}, "part.rate", "part.rate: expected a number, got True (bool)"),
        ({"part": {"rate": 10**400}}, "part.rate", "part.rate: expected a number, got 1000000000"),
        ({"part": {"rate": 0}}, "part.rate", "part.rate: expected a positive number, got 0.0 (float)"),
        ({"parts": [{}, {"kind": "sdg"}]}, "parts[1].kind", "parts[1].kind: expected one of sgd, adam, got 'sdg' (str)"
         "; did you mean 'sgd'?"),
        ({"parts": [{"kind": "adam", "rate": 1}]}, "parts[0].kind", "parts[0].kind: adam does not take this rate"),
        ({"window": {"side": 0}}, "window.side", "window.side: expected pixels, got 0"),
        ({"part": {"kind": "a:2"}}, "part.kind", "part.kind: your own part is named package.module:Name, got 'a:2'"),
        ({"part": {"rate": 1, "speed": 1}}, "part.speed", "unknown key 'part.speed'"),
        ({"part": {"speed": 0}}, "part.rate", "part.rate: expected a positive number, got 0.0 (float)"),
        ({"part": {"rate": 7}}, "part", "part.seven is nobody's rate: really"),
        ({"scores": {"ant": "high"}}, "scores.ant", "scores.ant: expected a number, got 'high' (str)"),
        ({"span": {"low": 1}}, "span.high", "missing key 'span.high' (expected a number)"),
        ({"span": {"low": 1, "high": 2, "nme": "x"}}, "span.nme", "unknown key 'span.nme'"),
        ({"span": {"low": 1, "high": 2, "name": 3}}, "span.name", "span.name: expected text, got 3 (int)"),
    ],
)  # fmt: skip
def test_an_error_has_the_dotted_key_of_what_is_wrong(change, key, message):
    with pytest.raises(ConfigError) as caught:
        build(Config, {"size": [1, 2], **change})
    assert caught.value.key == key
    assert isinstance(caught.value, IsodetError) and isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(message)


def test_a_missing_key():
    with pytest.raises(ConfigError, match="missing key 'size'") as caught:
        build(Config, {})
    assert caught.value.key == "size"


def test_what_is_read_has_the_annotated_types():
    content = {"size": [1, 2], "scores": {"ant": 1}, "free": {"x": [1]}, "span": {"low": 0, "high": 2}}
    config = build(Config, content)
    assert config == Config((1, 2), scores={"ant": 1.0}, free={"x": [1]}, span={"low": 0.0, "high": 2.0})
    assert isinstance(config.scores["ant"], float) and config.span is not None and isinstance(config.span["low"], float)
    assert build(Config, json.loads(json.dumps(to_mapping(config)))) == config


def test_an_unknown_key_names_the_nearest_beside_it_or_the_same_elsewhere():
    for content, key, meant in (
        ({"part": {"rte": 1}}, "part.rte", "did you mean 'rate'?"),
        ({"rate": 1}, "rate", "did you mean 'part.rate' or 'parts.rate'?"),
        ({"span": {"low": 1, "high": 2, "nme": "x"}}, "span.nme", "did you mean 'name'?"),
        ({"part": {"zzz": 1}}, "part.zzz", "valid: rate, kind"),
    ):
        with pytest.raises(UnknownKeyError) as caught:
            build(Config, {"size": [1, 2], **content})
        assert caught.value.key == key and str(caught.value).endswith(meant)


def test_an_error_passes_between_processes_with_its_file_and_key():
    with pytest.raises(UnknownKeyError) as caught:
        build(Part, {"rte": 1})
    error = pickle.loads(pickle.dumps(caught.value.of_file("a/my.yaml")))
    assert str(error) == "a/my.yaml: unknown key 'rte'; did you mean 'rate'?"
    assert (error.key, str(error.path), error.beside) == ("rte", "a/my.yaml", ("rate", "kind"))
