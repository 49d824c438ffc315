"""Wheels that came along to a machine without a network: joined from their parts, and installed beside everything."""

from __future__ import annotations

import importlib.metadata
import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path

PART = re.compile(r"^(?P<wheel>.+\.whl)\.xz\.(?P<number>\d+)of(?P<count>\d+)$")
"""A part of a wheel that was packed anew with xz and cut, as carry.sh names it."""

PIP = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir",
       "--disable-pip-version-check", "--upgrade")  # fmt: skip


def install(carried: Path, site: Path) -> tuple[Path | None, list[str]]:
    """Install every whole wheel below `carried` into the folder `site`; that folder, or None, and a line on each.

    Dependencies are not looked at: what is carried is what a machine lacks. A wheel of which parts are missing, or that
    pip refuses, is left out, and its line says why. What was installed by an earlier call stays.
    """
    notes: list[str] = []
    joined = site.parent / "wheels"
    wheels = {path.name: path for path in sorted(carried.glob("**/*.whl"))}
    for name, parts in parts_of(carried).items():
        counts = sorted({count for _, count in parts.values()})
        if len(counts) > 1:
            notes.append(f"carried {name}: parts of {counts[0]} and of {counts[1]}: of two packings; carry them anew")
            continue
        count = counts[0]
        missing = sorted(set(range(1, count + 1)) - set(parts))
        if missing:
            notes.append(f"carried {name}: {len(missing)} of its {count} parts are not here yet")
            continue
        try:
            wheels[name] = join([parts[number][0] for number in range(1, count + 1)], joined / name)
        except (OSError, EOFError, lzma.LZMAError) as error:  # EOFError: the last part is short
            notes.append(f"carried {name}: its parts do not make a whole: {error}")
    for name, wheel in wheels.items():
        done = site / f".{name}.installed"
        if not done.exists():
            command = [sys.executable, *PIP, "--target", str(site), str(wheel)]
            result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if result.returncode:
                notes.append(f"carried {name}: pip refuses it: {' '.join(result.stderr.split())[-300:]}")
                continue
            done.touch()
        notes.append(f"carried {name}: installed")
    return (site.resolve() if site.exists() else None), notes


def name_source(root: Path, site: Path) -> None:
    """Let Python know of isodet, by pip's records in `site`, where only its source is here and was never installed.

    Checkpoints, cards and graphs name its version, and ask for it by that way. Raises OSError.
    """
    try:
        importlib.metadata.version("isodet")
    except importlib.metadata.PackageNotFoundError:
        found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None, "pyproject.toml names a version"
        info = site / f"isodet-{found[1]}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: isodet\nVersion: {found[1]}\n")


def parts_of(carried: Path) -> dict[str, dict[int, tuple[Path, int]]]:
    """Parts by wheel and number, each with the count of parts that there should be."""
    found: dict[str, dict[int, tuple[Path, int]]] = {}
    for path in sorted(carried.glob("**/*.whl.xz.*")):
        match = PART.match(path.name)
        if match is not None:
            parts = found.setdefault(match["wheel"], {})
            parts[int(match["number"])] = path, int(match["count"])
    return found


def join(parts: list[Path], wheel: Path) -> Path:
    """The wheel of `parts`, made once. Raises OSError, EOFError or LZMAError; then nothing is left."""
    if wheel.exists():
        return wheel
    wheel.parent.mkdir(parents=True, exist_ok=True)
    whole, partial = wheel.with_suffix(".xz"), wheel.with_suffix(".partial")
    try:
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        with lzma.open(whole) as packed, partial.open("wb") as out:
            shutil.copyfileobj(packed, out)
        return partial.rename(wheel)
    finally:
        whole.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
