"""Errors: one base, and none loses anything on its way from another process."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isodet.errors import IsodetError
from isodet.rooms import RoomError
from runtime.backends.protocol import OutOfMemory
from runtime.card.card import CardError

ROOMS = ("isodet", "models", "runtime", "trainer", "export")
AS_CONSTRUCTED: dict[str, tuple[Any, ...]] = {
    "AuditError": ("best.engine: no convolution was found", "an audit"),
    "GateError": ("the export loses 3 mAP points", "a verification", "a bisection"),
    "ImageError": ("street.jpg", "no such picture file"),
    "RequestError": (413, "expected a body of at most 9 bytes", {"Connection": "close"}),
    "TensorFileError": ("not a file of tensors", "os.system"),
}
"""What the constructors take that have more to say than a message."""


def _modules() -> Iterator[Any]:
    for room in ROOMS:
        package = importlib.import_module(room)
        yield package
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            yield importlib.import_module(module.name)


def _errors() -> list[type[Exception]]:
    classes = {
        value
        for module in _modules()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.__name__
    }
    return sorted(classes, key=lambda cls: (cls.__module__, cls.__name__))


def _made(cls: type[Exception]) -> Exception:
    if cls.__name__ in AS_CONSTRUCTED:
        return cls(*AS_CONSTRUCTED[cls.__name__])
    return cls("a message", key="box.loss", path="best.pt", image="street.jpg")


def test_every_error_is_an_isodet_error_first_and_what_python_calls_it_second():
    errors = _errors()
    assert len(errors) > 30
    for cls in errors:
        assert issubclass(cls, IsodetError), cls
        if cls is not IsodetError:
            assert issubclass(cls, (ValueError, RuntimeError, ImportError)), cls


def test_an_error_keeps_message_and_attributes_when_it_is_pickled_or_copied():
    for cls in _errors():
        error = _made(cls)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            _same(pickle.loads(pickle.dumps(error, protocol)), error)
        _same(copy.copy(error), error)
        _same(copy.deepcopy(error), error)


def _same(again: Exception, error: Exception) -> None:
    assert type(again) is type(error)
    assert str(again) == str(error) != ""
    assert vars(again) == vars(error)
    for name in ("key", "path", "image"):
        assert getattr(again, name) == getattr(error, name)


def test_what_is_at_fault_is_an_attribute_and_none_where_nothing_is_named():
    bare = IsodetError()
    assert (str(bare), bare.key, bare.path, bare.image) == ("", None, None, None)
    error = IsodetError("no card", key="card", path="best.pt", image="street.jpg")
    assert (str(error), error.key, error.path, error.image) == ("no card", "card", Path("best.pt"), "street.jpg")


def test_a_builtin_s_own_attribute_of_that_name_is_kept_too():
    """ImportError has a `path` that is no entry of `vars()`."""
    error = RoomError("models.py hides isodet's", path="models.py")
    assert pickle.loads(pickle.dumps(error)).path == error.path == Path("models.py")


def test_a_note_goes_with_a_pickled_error():
    error = IsodetError("best.pt: no card", path="best.pt")
    error.add_note("in worker 3")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["in worker 3"]


@pytest.mark.parametrize(("builtin", "error"), [(ValueError, CardError), (RuntimeError, OutOfMemory)])
def test_who_catches_a_builtin_still_does(builtin, error):
    with pytest.raises(builtin):
        raise error("a message")
