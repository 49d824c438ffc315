"""Wheels in a form that fits into calls to a machine which takes little at a time: folders, and parts of what is large.

    python -m benchmarks.gpu.pack SET WHEEL...   pack the wheels of a set into .gpu-carry/
    python -m benchmarks.gpu.pack SET --check    whether that was done: exit status 0
    python -m benchmarks.gpu.pack --plan         what is there, and the calls that carry it

A wheel that one call cannot carry is stored anew without compression, compressed whole by xz, which finds a third more
than zip does in a library of CUDA kernels, and cut into parts of one size, in a folder each.
`benchmarks.gpu.carried` joins them. What was packed is joined and compared with the wheel before it counts as done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.carried import join
from benchmarks.gpu.stages import STAGES

MIB = 2**20
LIMIT = 52 * MIB
"""Bytes of a folder: a call takes 64 MiB, the tree is 8, and something has to be left for it to grow."""
FULL = '"$OUT"'
ORDER = ("rtx", "ort", "rtx-ep", "video")
"""The sets after the first call, most valuable first."""
STAGE_OF = {"rtx": "engines", "ort": "onnxruntime", "rtx-ep": "onnxruntime", "video": "video"}
BUYS = {
    "rtx": "TensorRT-RTX engines of three detectors, or the library's own reason why not on this card",
    "ort": "ONNX Runtime's CUDA provider: same detections, images a second, CUDA graphs",
    "rtx-ep": "ONNX Runtime's plugin for RTX cards, or its own reason why not on this card",
    "video": "decoding on the GPU beside OpenCV",
}


class PackError(ValueError):
    """Wheels that cannot be packed, or parts that are not the wheel; the message says which."""


def pack(name: str, wheels: Sequence[Path], out: Path, limit: int = LIMIT) -> dict[str, int]:
    """Write `wheels` as the set `name` into folders below `out`; bytes of each folder.

    Whatever of that set was there before goes. Raises `PackError`, and OSError where it cannot be written.
    """
    for folder in folders(name, out):
        shutil.rmtree(folder)
    record(name, out).unlink(missing_ok=True)
    written: list[Path] = []
    large = [wheel for wheel in wheels if wheel.stat().st_size > limit]
    if len(large) > 1:
        raise PackError(f"{name}: expected one wheel over {limit / MIB:.0f} MiB, got {[w.name for w in large]}")
    small = [wheel for wheel in wheels if wheel not in large]
    if sum(wheel.stat().st_size for wheel in small) > limit:
        raise PackError(f"{name}: its small wheels are more than {limit / MIB:.0f} MiB together")
    last = out / name
    if large:
        written += cut_wheel(large[0], name, out, limit)
        last = written[-1].parent
    last.mkdir(parents=True, exist_ok=True)
    written += [Path(shutil.copy(wheel, last)) for wheel in small]
    entries = {str(path.relative_to(out)): sha256(path) for path in written}
    record(name, out).write_text(json.dumps(entries, indent=1))
    return {folder.name: size_of(folder) for folder in folders(name, out)}


def cut_wheel(wheel: Path, name: str, out: Path, limit: int) -> list[Path]:
    """The parts of `wheel`, one in each folder. Raises `PackError` where they do not make the wheel again."""
    if shutil.which("xz") is None:
        raise PackError(f"{wheel.name}: xz is needed to pack it")
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / wheel.name
        store(wheel, plain)
        subprocess.run(["xz", "-6", "-T0", str(plain)], check=True)
        packed = plain.with_name(f"{plain.name}.xz")
        count = math.ceil(packed.stat().st_size / limit)
        each = math.ceil(packed.stat().st_size / count)
        parts = []
        with packed.open("rb") as source:
            for number in range(1, count + 1):
                part = out / f"{name}-{number}" / f"{wheel.name}.xz.{number}of{count}"
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(source.read(each))
                parts.append(part)
        packed.unlink()
        if content(join(parts, Path(scratch) / "joined" / wheel.name)) != content(wheel):
            raise PackError(f"{wheel.name}: its parts do not make the same wheel")
    return parts


def store(wheel: Path, out: Path) -> None:
    """The same files in the same order, not compressed."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            kept = zipfile.ZipInfo(entry.filename, entry.date_time)
            kept.external_attr = entry.external_attr
            target.writestr(kept, source.read(entry))


def content(wheel: Path) -> str:
    """Hexadecimal SHA-256 of what is in a wheel: names and bytes of its files, however they are compressed."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            digest.update(f"{name}\0{hashlib.sha256(archive.read(name)).hexdigest()}\n".encode())
    return digest.hexdigest()


def complete(name: str, out: Path) -> bool:
    """Whether the set was packed and every file of it is as it was written."""
    if not record(name, out).exists():
        return False
    entries: dict[str, str] = json.loads(record(name, out).read_text())
    return bool(entries) and all((out / path).is_file() and sha256(out / path) == v for path, v in entries.items())


def folders(name: str, out: Path) -> list[Path]:
    """Those of a set, in their order."""
    numbered = [(int(path.name.removeprefix(f"{name}-")), path) for path in out.glob(f"{name}-*")
                if path.is_dir() and path.name.removeprefix(f"{name}-").isdecimal()]  # fmt: skip
    whole = [out / name] if (out / name).is_dir() else []
    return whole + [path for _, path in sorted(numbered)]


def record(name: str, out: Path) -> Path:
    """Where it says what was packed: path and SHA-256 of every file."""
    return out / f"{name}.json"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plan(out: Path) -> str:
    """What was packed, and the calls that bring it over and run it."""
    lines = [f"{'folder':<12}{'MiB':>6}"]
    there = {name: folders(name, out) for name in ("small", *ORDER) if complete(name, out)}
    lines += [f"{f.name:<12}{size_of(f) / MIB:>6.1f}" for found in there.values() for f in found]
    lines += ["", "Calls, one after another while the machine is warm (8 GPU minutes in the first; see "
              "docs/benchmarks/gpu.md):", ""]  # fmt: skip
    carried = " ".join(str(out / f.name) for f in there.get("small", [])) or "nothing"
    lines += [f" 1. carry {carried}", f"    python3 -m benchmarks.gpu --minutes 8 --out {FULL}",
              "    everything that needs torch alone: up to the stage cuda-memory"]  # fmt: skip
    number = 1
    for name in ORDER:
        found = there.get(name, [])
        for folder in found:
            number += 1
            lines.append(f"{number:>2}. carry {out / folder.name}")
            if folder is found[-1]:
                stage = next(stage for stage in STAGES if stage.name == STAGE_OF[name])
                lines.append(f"    python3 -m benchmarks.gpu --stages {stage.name} --minutes {stage.seconds / 60:.3g} "
                             f"--out {FULL}")  # fmt: skip
                lines.append(f"    {BUYS[name]}")
            else:
                lines.append("    ls .gpu-carry")
                lines.append("    nothing yet: a part that stays there (or any stage that had no time before)")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=("small", *ORDER))
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    parser.add_argument("--out", type=Path, default=Path(".gpu-carry"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plan", action="store_true")
    arguments = parser.parse_args()
    if arguments.plan:
        print(plan(arguments.out))
        return 0
    if arguments.set is None:
        parser.error("expected the name of a set")
    if arguments.check:
        return 0 if complete(arguments.set, arguments.out) else 1
    if not arguments.wheels:
        parser.error("expected the wheels of the set")
    try:
        for folder, size in pack(arguments.set, arguments.wheels, arguments.out).items():
            print(f"{arguments.out / folder}: {size / MIB:.1f} MiB")
    except (PackError, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
