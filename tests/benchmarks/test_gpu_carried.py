"""Wheels that are packed here and joined there: the same content, and a clear line for everything that is not whole."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.carried import PART, install
from benchmarks.gpu.pack import PackError, complete, content, folders, pack, plan
from tests.processes import ROOT, python

pytestmark = pytest.mark.skipif(shutil.which("xz") is None, reason="packing needs xz")

LIMIT = 700
"""Bytes of a part."""


def wheel(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """A wheel of one module, whose data do not compress."""
    noise = base64.b85encode(np.random.default_rng(seed).bytes(1500)).decode()
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": f"NOISE = {noise!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return out


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder of a set that was cut."""
    pack("set", [wheel(tmp_path / "wheels")], tmp_path / "carry", LIMIT)
    return tmp_path / "carry"


def parts(carried: Path) -> list[Path]:
    return sorted(carried.glob("set-*/*.whl.xz.*"))


def imported(site: Path, code: str) -> str:
    """What a fresh Python prints."""
    done = python("-c", code, env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_parts_become_the_wheel_again_and_pip_installs_it(tmp_path: Path, packed: Path) -> None:
    found = parts(packed)
    assert len(found) >= 3 and all(PART.match(part.name) for part in found)
    assert [part.parent.name for part in found] == [f"set-{i}" for i in range(1, len(found) + 1)]
    assert all(part.stat().st_size <= LIMIT for part in found)
    site, notes = install(packed, tmp_path / "work" / "site")
    assert notes == ["carried tiny-1.0-py3-none-any.whl: installed"] and site is not None
    joined, original = tmp_path / "work" / "wheels" / "tiny-1.0-py3-none-any.whl", tmp_path / "wheels"
    assert content(joined) == content(original / joined.name) and joined.stat().st_size != original.stat().st_size
    assert imported(site, "import tiny; print(len(tiny.NOISE))") == "1875"


def test_a_set_of_small_wheels_is_one_folder(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / "wheels"), wheel(tmp_path / "wheels", "other", 1)]
    assert list(pack("set", wheels, tmp_path / "carry")) == ["set"]
    site, notes = install(tmp_path / "carry", tmp_path / "work" / "site")
    assert len(notes) == 2 and site is not None
    assert imported(site, "import tiny, other; print(tiny.NOISE != other.NOISE)") == "True"


def test_small_wheels_ride_with_the_last_part(tmp_path: Path) -> None:
    large, small = wheel(tmp_path / "wheels"), tmp_path / "wheels" / "notes-1.0-py3-none-any.whl"
    with zipfile.ZipFile(small, "w") as archive:
        archive.writestr("notes.txt", "a")
    pack("set", [large, small], tmp_path / "carry", LIMIT)
    assert (folders("set", tmp_path / "carry")[-1] / small.name).exists()


def test_it_knows_what_was_packed_already(tmp_path: Path, packed: Path) -> None:
    assert complete("set", packed) and not complete("other", packed)
    part = parts(packed)[1]
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert not complete("set", packed)
    pack("set", [wheel(tmp_path / "wheels")], packed, 10**6)
    assert complete("set", packed) and [folder.name for folder in folders("set", packed)] == ["set"]


def test_two_large_wheels_are_refused(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / "wheels"), wheel(tmp_path / "wheels", "other", 1)]
    with pytest.raises(PackError, match=r"expected one wheel over 0 MiB, got \['tiny.*', 'other.*'\]"):
        pack("set", wheels, tmp_path / "carry", LIMIT)


def only_line(carried: Path, tmp_path: Path) -> str:
    """The one note of an installation after which nothing is installed."""
    site, notes = install(carried, tmp_path / "work" / "site")
    assert site is None and len(notes) == 1
    assert not list((tmp_path / "work").glob("wheels/*"))
    return notes[0]


def test_a_part_that_is_not_there_yet(tmp_path: Path, packed: Path) -> None:
    count = len(parts(packed))
    parts(packed)[1].unlink()
    expected = f"carried tiny-1.0-py3-none-any.whl: 1 of its {count} parts are not here yet"
    assert only_line(packed, tmp_path) == expected
    pack("set", [wheel(tmp_path / "wheels")], packed, LIMIT)  # it comes with a later call
    assert install(packed, tmp_path / "work" / "site")[1] == ["carried tiny-1.0-py3-none-any.whl: installed"]


@pytest.mark.parametrize("damage", ["changed", "short", "empty"])
def test_a_damaged_part(tmp_path: Path, packed: Path, damage: str) -> None:
    part = parts(packed)[-1 if damage == "short" else 1]
    data = part.read_bytes()
    half = len(data) // 2
    part.write_bytes({"changed": data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :], "short": data[:-20],
                      "empty": b""}[damage])  # fmt: skip
    assert "tiny-1.0-py3-none-any.whl: its parts do not make a whole: " in only_line(packed, tmp_path)


def test_a_part_of_another_wheel(tmp_path: Path, packed: Path) -> None:
    pack("set", [wheel(tmp_path / "others", seed=1)], tmp_path / "other", LIMIT)
    parts(packed)[1].write_bytes(parts(tmp_path / "other")[1].read_bytes())
    assert "its parts do not make a whole: " in only_line(packed, tmp_path)


def test_parts_of_two_packings(tmp_path: Path, packed: Path) -> None:
    count = len(parts(packed))
    first = parts(packed)[0]
    first.rename(first.with_name(first.name.replace(f"1of{count}", "1of9")))
    assert only_line(packed, tmp_path).endswith(f"parts of {count} and of 9: of two packings; carry them anew")


def test_a_wheel_that_pip_refuses_costs_only_itself(tmp_path: Path, packed: Path) -> None:
    (packed / "bad").mkdir()
    (packed / "bad" / "bad-1.0-cp27-none-any.whl").write_bytes(b"not a wheel")
    site, notes = install(packed, tmp_path / "work" / "site")
    assert site is not None and "carried tiny-1.0-py3-none-any.whl: installed" in notes
    assert [note for note in notes if note.startswith("carried bad-1.0-cp27-none-any.whl: pip refuses it: ERROR: ")]


def test_source_that_was_never_installed_has_a_version(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.carried import name_source
from importlib.metadata import version
name_source(Path({str(ROOT)!r}), Path({str(tmp_path / "site")!r}))
print(version("isodet"))
"""
    # -S: without the packages that are installed here
    done = python("-S", "-c", code, env={"PYTHONPATH": str(tmp_path / "site")})
    assert f'version = "{done.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text(), done.stderr


def test_the_plan_names_every_folder_once(tmp_path: Path) -> None:
    pack("rtx", [wheel(tmp_path / "wheels")], tmp_path, LIMIT)
    count = len(folders("rtx", tmp_path))
    text = plan(tmp_path)
    assert all(text.count(f"carry {tmp_path / f'rtx-{i}'}\n") == 1 for i in range(1, count + 1))
    assert f"{count + 1:>2}. carry {tmp_path / f'rtx-{count}'}\n    python3 -m benchmarks.gpu --stages engines" in text
