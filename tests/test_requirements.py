"""What pyproject.toml promises of versions is what is installed and tested: its minima, its Pythons, the locks.

`make test-oldest` installs requirements/oldest.txt, `make` the lock of its Python; both are compared with pyproject.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[1]
PROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYTHONS = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
LOCKS = {python: ROOT / "requirements" / f"lock-py{python.replace('.', '')}.txt" for python in PYTHONS}
OLDEST = ROOT / "requirements" / "oldest.txt"


def variable(name: str) -> str:
    """What the Makefile sets `name` to."""
    (value,) = re.findall(rf"^{name} *[:?]?= *(.*)$", MAKEFILE, re.MULTILINE)
    return value


def required() -> list[Requirement]:
    """What `make` installs: the dependencies and those of its extras, each once for each time it is written."""
    extras = (PROJECT["optional-dependencies"][extra] for extra in variable("EXTRAS").split(","))
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


def pins(path: Path) -> dict[str, Version]:
    """Versions by package. Raises AssertionError for any line but `name==version`: an address, an option, a hash."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.+!]*", line) for line in lines), path
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def test_what_make_installs_is_what_the_four_rooms_and_their_tests_need():
    assert variable("EXTRAS") == "train,export,cpu,test"
    assert {"torch", "onnx", "numpy", "onnxruntime", "pytest"} <= {r.name for r in required()}


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_the_oldest_versions_are_the_minima_of_pyproject(requirement):
    (minimum,) = requirement.specifier  # one, and no upper bound
    assert minimum.operator == ">="
    lowest, pinned = Version(minimum.version), pins(OLDEST)[canonicalize_name(requirement.name)]
    # Where the index has 4.8.0.74 as its first 4.8, that is the minimum 4.8.
    places = len(minimum.version.split("."))
    assert pinned in requirement.specifier and (*pinned.release, 0, 0)[:places] == lowest.release


@pytest.mark.parametrize("python", PYTHONS)
def test_each_lock_satisfies_pyproject(python):
    locked = pins(LOCKS[python])
    for requirement in required():
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert len(locked) > len(required())  # what they need in turn as well


def test_there_is_a_lock_for_each_python_that_is_promised_and_for_no_other():
    assert sorted(LOCKS.values()) == sorted((ROOT / "requirements").glob("lock-py*.txt"))
    assert variable("PYTHONS").split() == PYTHONS
    promised = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in promised] == PYTHONS
    first, last = PYTHONS[0], PYTHONS[-1]
    assert f"(3, {first[2:]}) <= sys.version_info[:2] <= (3, {last[2:]})" in MAKEFILE
    assert f"Python {first} to {last}" in MAKEFILE
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_oldest_versions_are_installed_by_test_oldest_and_what_it_runs_is_there():
    assert variable("OLDEST_LOCK") == str(OLDEST.relative_to(ROOT))
    assert "core VENV=$(OLDEST) LOCK=$(OLDEST_LOCK)" in MAKEFILE
    assert "core: $(STAMP) $(CORE)" in MAKEFILE  # a file that is missing is an error of make's
    for room in ("models", "trainer", "runtime", "export"):
        (named,) = re.findall(rf"patsubst %,tests/{room}/test_%.py,([a-z0-9_ ]+)", MAKEFILE)
        missing = [name for name in named.split() if not (ROOT / "tests" / room / f"test_{name}.py").is_file()]
        assert named.split() and not missing
