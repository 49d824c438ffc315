"""Every member of TensorRT that our code touches exists in versions 10 and 11 and in TensorRT-RTX.

What is touched is read from the source: of whatever is annotated as `tensorrt.X` (those annotations are there for
this), and of the module itself, which is called `trt`. A member that a `hasattr` asks for first may be missing in some.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_trt import VERSIONS, members

ROOT = Path(__file__).parents[1]
SOURCES = (
    "runtime/backends/trt/backend.py", "runtime/backends/trt/context.py", "runtime/backends/trt/library.py",
    "export/engine/build.py", "export/engine/cache.py",
)  # fmt: skip


def touched(source: str) -> Iterator[tuple[str, str, int, bool]]:
    """Class ("" for the module), member, line, and whether a hasattr of the same function asks for it."""
    for function in _functions(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        kinds = _annotated(function)
        asked = {
            node.args[1].value
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr"
            and isinstance(node.args[1], ast.Constant)
        }  # fmt: skip
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or node.attr == "__init__":
                continue
            owner = ast.unparse(node.value)
            if owner in kinds:
                yield kinds[owner], node.attr, node.lineno, node.attr in asked or _under_hasattr(function, node)
            elif owner in ("trt", "library.trt"):
                yield "", node.attr, node.lineno, _under_hasattr(function, node)
            elif owner.startswith("trt.") and owner.count(".") == 1:
                yield owner[4:], node.attr, node.lineno, _under_hasattr(function, node)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Those of modules and classes; a class sees what its methods annotate on `self`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            shared = [
                n for n in ast.walk(node) if isinstance(n, ast.AnnAssign) and ast.unparse(n.target)[:5] == "self."
            ]
            for function in _functions(node):
                function.body = [*shared, *function.body]
                yield function


def _annotated(function: ast.FunctionDef) -> dict[str, str]:
    kinds = {}
    for node in ast.walk(function):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            kind = ast.unparse(node.annotation)
            if kind.startswith("tensorrt."):
                kinds[node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)] = kind[9:]
    for node in ast.walk(function):  # other names for the same things: `engine, context = self._engine, ...`
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            for target, value in zip(node.targets[0].elts, node.value.elts, strict=True):
                if ast.unparse(value) in kinds:
                    kinds[ast.unparse(target)] = kinds[ast.unparse(value)]
    return kinds


def _under_hasattr(function: ast.FunctionDef, wanted: ast.AST) -> bool:
    """Whether it stands in the body of an `if` that asks `hasattr`."""
    return any(
        isinstance(node, ast.If) and "hasattr(" in ast.unparse(node.test)
        and any(wanted is inner for child in node.body for inner in ast.walk(child))
        for node in ast.walk(function)
    )  # fmt: skip


USES = [(source, *use) for source in SOURCES for use in touched(source)]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_we_touch_is_there(version: str) -> None:
    api = members(version)
    for source, kind, member, line, optional in USES:
        if optional:
            continue
        there = member in api if not kind else member in api[kind]
        assert there, f"{source}:{line}: {version} has no {kind or 'tensorrt'}.{member}"


def test_what_is_asked_for_with_hasattr_is_there_in_one_of_them() -> None:
    for source, kind, member, line, _ in USES:
        found = any(member in (api if not kind else api.get(kind, ())) for api in map(members, VERSIONS))
        assert found, f"{source}:{line}: no version has {kind or 'tensorrt'}.{member}"


def test_the_reading_sees_what_it_looks_for() -> None:
    """The calls that make an engine and run it are among what was read, from every kind of variable."""
    seen = {(kind, member) for _, kind, member, _, _ in USES}
    assert {
        ("Builder", "build_serialized_network"), ("OnnxParser", "parse_from_file"), ("ParserError", "node_name"),
        ("IBuilderConfig", "set_compute_capability"), ("ICudaEngine", "get_tensor_name"), ("ITensor", "shape"),
        ("IExecutionContext", "execute_async_v3"), ("EngineInspector", "execution_context"),
        ("ITimingCache", "serialize"), ("IOptimizationProfile", "set_shape"), ("", "Builder"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("Runtime", "deserialize_cuda_engine"),
    } <= seen  # fmt: skip
    assert not {member for kind, member in seen if kind == "BuilderFlag"} & {"FP16", "INT8", "BF16", "FP8"}
    optional = {member for _, _, member, _, asked in USES if asked}
    assert "set_compute_capability" in optional and "set_flag" not in optional


def test_cuda_has_what_we_touch() -> None:
    """Against cuda-python itself, where it is installed."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    tree = ast.parse((ROOT / "runtime/backends/cuda/memory.py").read_text(encoding="utf-8"))
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = sorted(name for name in dotted if name.startswith("cudart."))
    assert len(used) > 10
    for name in used:
        owner = cudart
        for part in name.split(".")[1:]:
            assert hasattr(owner, part), name
            owner = getattr(owner, part)
    assert hasattr(importlib.import_module("cuda.bindings.utils"), "get_cuda_native_handle")
