"""What a user installs: the wheel holds the four rooms, their commands and license, and no tests.

Built without network and build isolation, in a copy of the tree, so that nothing is left behind here.
"""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.processes import ROOT, python

ROOMS = ("isodet", "models", "trainer", "export", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.npz")
    for folder in (*ROOMS, "tests", "benchmarks"):  # tests too: the wheel must leave them out by itself
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def read(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(ending))
        return archive.read(name).decode()


def test_every_module_of_the_rooms_is_in_and_nothing_else(names):
    modules = (path for room in ROOMS for path in (ROOT / room).rglob("*.py*") if path.suffix in (".py", ".pyi"))
    ours = {str(path.relative_to(ROOT)) for path in modules}
    packed = {name for name in names if ".dist-info/" not in name}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "runtime/serve/page").iterdir() if path.is_file()}
    assert {Path(name).suffix for name in page} >= {".html", ".css", ".js"}
    assert packed == ours | page | {f"{room}/py.typed" for room in ROOMS}


def test_every_folder_with_modules_is_a_package(names):
    folders = {str(Path(name).parent) for name in names if name.endswith(".py")}
    assert all(f"{folder}/__init__.py" in names for folder in folders)


def test_the_commands(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(read(wheel, "entry_points.txt"))
    rooms = {"trainer": "trainer", "runtime": "runtime", "exporter": "export", "export": "export"}
    assert dict(scripts["console_scripts"]) == {name: f"{room}.__main__:main" for name, room in rooms.items()}


def test_the_license_and_what_an_install_pulls_in(wheel):
    assert "Apache License" in read(wheel, "LICENSE")
    metadata = email.message_from_string(read(wheel, "METADATA"))
    assert metadata["Name"] == "isodet" and metadata["License-Expression"] == "Apache-2.0"
    required = metadata.get_all("Requires-Dist")
    base = {line.split(">")[0] for line in required if "extra ==" not in line}
    assert base == {"numpy", "opencv-python", "tqdm"}
    extras = set(metadata.get_all("Provides-Extra"))
    optional = {"trt", "rtx", "rtx-ep", "video", "nvidia", "track", "serve", "timm", "lite", "fast-eval", "openvino"}
    assert extras == {"cpu", "gpu", "train", "export", "test", "all", "mlflow", "wandb", "albumentations"} | optional


BUILDS = ("onnxruntime", "onnxruntime-gpu")


def brought_by(required: list[Requirement], extra: str) -> set[str]:
    """Names of the packages that an extra brings, by the extras of isodet that it refers to as well."""
    chosen = [r for r in required if r.marker is not None and r.marker.evaluate({"extra": extra})]
    through = (brought_by(required, other) for r in chosen if r.name == "isodet" for other in r.extras)
    return {r.name for r in chosen if r.name != "isodet"}.union(*through)


def test_one_build_of_onnxruntime_is_chosen_and_no_other_extra_brings_one(wheel):
    """Both own one Python module: an extra that brought a build would put it beside the one that was chosen."""
    metadata = email.message_from_string(read(wheel, "METADATA"))
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    brought = {extra: brought_by(required, extra) for extra in metadata.get_all("Provides-Extra")}
    assert {"torch", "onnx", "tensorrt", "mlflow"} <= brought["all"]  # extras that it refers to were followed
    builds = {(extra, name) for extra, names in brought.items() for name in names if name in BUILDS}
    assert builds == {("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")}
    assert brought["gpu"] == {"onnxruntime-gpu", "cuda-python"}


def test_an_installed_wheel_works_from_anywhere(wheel, tmp_path):
    site = tmp_path / "site"
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", site, wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import runtime, models, trainer, export, isodet.trainer
for room in (runtime, models, trainer, export):
    assert room.__file__.startswith({str(site)!r}), room.__file__
from isodet import Detector
from runtime import Detections
assert isodet.trainer is trainer and Detector is runtime.Detector
print(len(Detections.empty(("a", "b"))))
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


def test_a_wheel_works_as_it_is(wheel, tmp_path):
    """Imported from the zip file: names are read from there, and by the other name nothing is loaded twice."""
    code = f"""
import sys
sys.path[:0] = [{str(wheel)!r}]
import isodet.runtime.card.card, runtime
from isodet import Detections
from runtime.image import read_image
from runtime.serve.page.routes import page_files
assert {{"/", "/page/page.css", "/page/page.js"}} <= set(page_files())
assert isodet.runtime is runtime and runtime.__file__.startswith({str(wheel)!r}), runtime.__file__
print(len(Detections.empty(["a"])), read_image is runtime.read_image)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "0 True\n", done.stderr


@pytest.mark.parametrize("module", ["trainer", "export", "runtime"])
def test_commands_explain_themselves_and_reject_wrong_usage(module):
    """--help is status 0; wrong usage is status 2."""
    helped, wrong = python("-m", module, "--help"), python("-m", module, "no-such-verb")
    assert helped.returncode == 0 and "usage" in helped.stdout.lower(), helped.stderr
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr, wrong.stderr
