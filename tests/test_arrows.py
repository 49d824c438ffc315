"""The rooms' rules, read from the source: who may import whom, who may speak, what a thing may be called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.processes import ROOT, python

ROOMS = ("isodet", "models", "runtime", "trainer", "export")
MAY_IMPORT = {
    "isodet": {"isodet"},
    "models": {"models", "isodet"},
    "runtime": {"runtime", "isodet"},  # and models, lazily, in the file below
    "trainer": {"trainer", "runtime", "models", "isodet"},
    "export": {"export", "runtime", "models", "isodet"},
}
LAZILY_MODELS = {"runtime/backends/torch/backend.py"}
NOT_AT_IMPORT = {
    "torch", "torchvision", "onnx", "onnxruntime", "pycocotools", "faster_coco_eval", "tensorrt", "matplotlib", "yaml",
}  # fmt: skip
CIRCLES = [("runtime.detector", "runtime.batcher")]  # Detector.batcher() makes the Batcher of a Detector
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def tree(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"), source)


def imports(module: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Dotted name, line and "runs at import" of every import; those under TYPE_CHECKING never run."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, not lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: relative import; rooms are imported by name"
                yield (child.module or "", child.lineno, not lazy)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, True)
            else:
                yield from visit(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return visit(module, False)


def speaks(source: str) -> bool:
    """Command modules: those of a room's folder `commands`, and `__main__`."""
    return source.endswith("__main__.py") or "/commands/" in source


def test_there_is_something_to_read():
    assert {source.split("/")[0] for source in sources()} == set(ROOMS)


@pytest.mark.parametrize("source", sources())
def test_imports_point_the_right_way(source):
    room = source.split("/")[0]
    for name, line, at_import in imports(tree(source)):
        top = name.split(".")[0]
        if top in ROOMS and top not in MAY_IMPORT[room]:
            assert source in LAZILY_MODELS and top == "models", f"{source}:{line}: {room} must not import {name}"
            assert not at_import, f"{source}:{line}: import {name} inside the function that needs it"
        assert top not in ("tests", "benchmarks"), f"{source}:{line}: a room must not import {name}"


@pytest.mark.parametrize("source", sources())
def test_names_are_taken_from_the_modules_that_have_them(source):
    """Not from a room's package, which may be the program's own where it has one of that name."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ROOMS:
            for alias in node.names:
                module = ROOT / node.module / alias.name
                there = module.is_dir() or module.with_suffix(".py").is_file()
                assert there, f"{source}:{node.lineno}: from {node.module} import {alias.name}: name its module"


def test_no_benchmark_stands_in_the_way_of_a_room():
    """A script's folder comes first on its path: benchmarks/runtime.py would be what the others import as runtime."""
    assert not {path.stem for path in (ROOT / "benchmarks").iterdir()} & set(ROOMS)


@pytest.mark.parametrize("source", [s for s in sources() if s.startswith("runtime/")])
def test_runtime_loads_heavy_packages_only_when_asked(source):
    backend = source.startswith("runtime/backends/") and not source.endswith("__init__.py")
    for name, line, at_import in imports(tree(source)):
        heavy = name.split(".")[0] in NOT_AT_IMPORT
        # A backend's own file is imported lazily as a whole.
        assert not (heavy and at_import and not backend), f"{source}:{line}: {name} at import"


@pytest.mark.parametrize("source", [s for s in sources() if not speaks(s)])
def test_only_commands_print_parse_arguments_or_exit(source):
    for node in ast.walk(tree(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert "argparse" not in names, f"{source}:{node.lineno}: arguments are parsed in command modules"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            quiet = called not in {"print", "sys.exit", "exit", "quit", "os._exit", "input"}
            assert quiet, f"{source}:{node.lineno}: {called}() belongs into a command module"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "SystemExit" not in ast.unparse(node.exc), f"{source}:{node.lineno}: raise an error, do not exit"


@pytest.mark.parametrize("source", sources())
def test_no_module_is_a_drawer(source):
    assert not DRAWERS & set(Path(source).with_suffix("").parts), f"{source}: name the room of what it holds"


@pytest.mark.parametrize("source", sources())
def test_constructors_name_their_arguments(source):
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            assert node.args.kwarg is None, f"{source}:{node.lineno}: **{node.args.kwarg.arg} hides a typo"


@pytest.mark.parametrize("source", sources())
def test_a_file_can_be_read_in_one_sitting(source):
    lines = len((ROOT / source).read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{source}: {lines} lines"


@pytest.mark.parametrize("room", ROOMS)
def test_a_subject_is_found_by_its_folder(room):
    top = [path.name for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"]
    assert len(top) <= 12, f"{room}: {len(top)} files at its top; a subject of several is a folder"


def subject(module: str) -> str:
    """What a module belongs to: the folder below its room, or itself at the top of one."""
    return ".".join(module.split(".")[:2])


def test_no_folder_imports_itself_through_another():
    """Imports inside functions and for typing are counted: who reads a file follows them, too."""
    modules = {source.removesuffix(".py").removesuffix("/__init__").replace("/", "."): source for source in sources()}
    needs: dict[str, set[str]] = {}
    for module, source in modules.items():
        for name in imported(tree(source)):
            while name not in modules and "." in name:
                name = name.rpartition(".")[0]
            if name in modules and "." in name and subject(name) != subject(module):
                needs.setdefault(subject(module), set()).add(subject(name))
    for here, there in CIRCLES:
        needs[here].remove(there)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def imported(module: ast.Module) -> Iterator[str]:
    """Dotted names of all that is imported, with the names taken out of each module."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("source", [s for s in sources() if s.startswith("models/")])
def test_the_graph_never_asks_whether_it_is_being_exported(source):
    """One decoder for everybody: no twin of a forward for the exporter."""
    names = {node.attr for node in ast.walk(tree(source)) if isinstance(node, ast.Attribute)}
    assert not names & {"is_in_onnx_export", "is_scripting", "is_tracing"}


def test_the_checks_see_what_they_look_for():
    code = "import torch\ndef f():\n    from models.deploy.nms import x\nif TYPE_CHECKING:\n    import onnx\n"
    module = ast.parse(code)
    assert list(imports(module)) == [("torch", 1, True), ("models.deploy.nms", 3, False), ("onnx", 5, False)]


def test_import_runtime_is_light():
    """In a fresh interpreter `import runtime` loads nothing heavy."""
    done = python("-c", "import sys, runtime; runtime.Detector; print(*{name.split('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not (NOT_AT_IMPORT | {"models", "trainer", "export"}) & set(done.stdout.split())
