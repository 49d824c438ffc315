"""What the rooms offer by name is there, is listed, is loaded when it is asked for, and is what the docs promise."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import isodet
import runtime
from isodet.lazy import lazy_names
from isodet.old_names import MOVED, RENAMED
from tests.processes import ROOT, python

ROOMS = {"models", "runtime", "trainer", "export"}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")])


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_name_that_a_room_offers_is_there_and_listed(room):
    module = importlib.import_module(room)
    assert dir(module) == module.__all__ == sorted(set(module.__all__)) and len(module.__all__) > 10
    for name in module.__all__:
        value = getattr(module, name)
        assert vars(module)[name] is value
        if isinstance(value, (type, FunctionType)):
            assert getattr(importlib.import_module(value.__module__), value.__name__) is value
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_module_has_the_name_of_something_that_its_room_offers(room):
    """Importing it would put the module in the place of the function."""
    modules = {module.name for module in pkgutil.iter_modules([str(ROOT / room)])}
    assert not modules & set(importlib.import_module(room).__all__)


def test_isodet_offers_what_runtime_does():
    assert set(isodet.__all__) == {*runtime.__all__, "IsodetError"}
    assert set(dir(isodet)) == {*isodet.__all__, *ROOMS}
    assert isodet.Detector is runtime.Detector and isodet.runtime is runtime
    with pytest.raises(AttributeError, match="nothing"):
        _ = isodet.nothing


@pytest.mark.parametrize(
    ("room", "name", "home"),
    [
        ("trainer", "fit", "trainer.loop"),
        ("export", "verify", "export.verification.verify"),
        ("runtime", "Streams", "runtime.streams.streams"),
        ("models", "Deploy", "models.deploy.graph"),
        ("isodet", "Streams", "runtime.streams.streams"),
    ],
)
def test_a_name_is_loaded_when_it_is_asked_for(room, name, home):
    code = (
        f"import sys, {room}\n"
        f"assert '{name}' in dir({room}) and '{home}' not in sys.modules and 'torch' not in sys.modules\n"
        f"{room}.{name}\n"
        f"print('{home}' in sys.modules)\n"
    )
    done = python("-c", code)
    assert done.stdout == "True\n", done.stderr


def test_the_errors_are_light():
    code = "import sys, isodet.errors; print(sorted({'numpy', 'cv2', 'runtime', 'models'} & set(sys.modules)))"
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_names_without_their_list_are_an_error(tmp_path, monkeypatch):
    """As where a program was packed without the .py files."""
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("packed")
    assert package.__spec__ is not None
    monkeypatch.setattr(package.__spec__, "loader", object())
    with pytest.raises(ImportError, match="packed: its source is needed"):
        lazy_names("packed")
    monkeypatch.delitem(sys.modules, "packed")


def code_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return "\n".join(blocks).replace("= await ", "= ") if page.suffix == ".md" else text  # at the top of an example


def named(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of everything of ours that Python code imports, or asks a room for."""
    tree = ast.parse(code)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS | {"isodet"}:
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported & ROOMS:
            yield node.value.id, node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_name_public_names_only(page):
    for module, name in named(code_of(page)):
        assert name in importlib.import_module(module).__all__, f"{page.name}: from {module} import {name}"


def test_the_docs_are_read():
    names = {pair for page in PAGES for pair in named(code_of(page))}
    assert {("runtime", "Detector"), ("export", "to_engine"), ("trainer", "fit"), ("models", "ConvNorm")} <= names
    found = list(named("from runtime.images.image import x\nimport export\nexport.y"))
    assert found == [("runtime.images.image", "x"), ("export", "y")]


OLD = [
    ("runtime.image", "read_image", "runtime.images.image"),
    ("runtime.image", "IMAGE_SUFFIXES", "runtime.images.image"),
    ("runtime.draw", "draw_detections", "runtime.images.draw"),
    ("runtime.header", "exif_orientation", "runtime.images.encoded"),
    ("runtime.header", "upright", "runtime.datasets.orientation"),
    ("runtime.records", "make_record", "runtime.datasets.annotations"),
    ("runtime.judge", "coco_metrics", "runtime.evaluation.coco_eval"),
    ("runtime.coco", "read_coco", "runtime.datasets.coco"),
    ("runtime.stream", "open_source", "runtime.streams.open"),
    ("runtime.card", "read_card", "runtime.artifact"),
    ("runtime.card", "sha256_file", "runtime.card.card"),
    ("runtime.streams", "Streams", "runtime.streams.streams"),
    ("runtime.batcher", "Batcher", "runtime.batcher.batcher"),
    ("models.config", "ModelConfig", "models.config.model"),
    ("models.deploy", "Deploy", "models.deploy.graph"),
    ("models.layers", "ConvNorm", "models.layers.blocks"),
    ("models.config.parse", "ConfigError", "isodet.strict"),
    ("models.nms", "suppression", "models.deploy.nms"),
    ("trainer.config", "TrainConfig", "trainer.config.train"),
    ("trainer.config", "read_config", "trainer.config_reader"),
]


@pytest.mark.parametrize(("old", "name", "new"), OLD)
def test_what_moved_is_found_by_its_old_name_with_a_warning(old, name, new):
    room, new_name = importlib.import_module(old.split(".")[0]), RENAMED.get(name, name)
    home = room.__name__ if name in room.__all__ else new
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(f"from {old} import {name} as value", scope := {})
    assert scope["value"] is getattr(importlib.import_module(new), new_name)
    ours = [warning for warning in told if str(warning.message).endswith(f"is now {home}.{new_name}")]
    assert ours and all(warning.category is DeprecationWarning for warning in ours)
    assert {warning.filename for warning in ours} == {"<string>"}  # whoever imports it, not isodet
    with pytest.raises(ImportError):
        exec(f"from {old} import nothing")


def test_importing_a_module_by_its_old_name_warns(monkeypatch):
    monkeypatch.delitem(sys.modules, "runtime.frames", raising=False)
    with pytest.warns(DeprecationWarning, match="runtime.frames is now runtime.images.frames"):
        import runtime.frames  # noqa: F401


def test_every_old_name_leads_to_modules():
    functions = {"runtime.evaluate", "models.fuse", "trainer.convert"}  # of those names today: told by an error
    for old, homes in MOVED.items():
        for home in homes:
            assert importlib.import_module(home), old
        if old not in functions:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it moved
                assert importlib.import_module(old), old


def test_an_old_module_never_takes_the_place_of_a_function():
    with pytest.raises(ImportError, match="from runtime import evaluate; its module is runtime.evaluation.evaluate"):
        importlib.import_module("runtime.evaluate")
    assert callable(runtime.evaluate)


@pytest.mark.parametrize(("package", "name"), [("trainer.config", "data"), ("models.layers", "fuse")])
def test_a_submodule_is_no_old_name(package, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(f"from {package} import {name} as module", scope := {})
    assert scope["module"].__name__ == f"{package}.{name}"
