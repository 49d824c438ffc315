"""Everything of isodet that needs a GPU, in one command, on a machine that may have no network and little time.

    python -m benchmarks.gpu [--stages machine training ...] [--minutes 8] [--out DIR]

Each stage is a process of its own with its own time limit: one that fails or hangs costs its limit and nothing else.
Results are printed and written to DIR as they come (results.json, results.md, log.txt), so that a run cut short still
tells. Wheels that benchmarks/gpu/carry.sh brought over, in .gpu-carry/, are joined and installed beside the work folder
first. docs/benchmarks/gpu.md has the calls for a machine that is lent for minutes.

With --device cpu the sequence is rehearsed: small numbers, and stages that need CUDA say so.

Exit status: 0 where every stage was done or had a reason not to be here, 1 where one failed or ran out of time; an aim
that was missed is reported and changes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu.carried import install, name_source
from benchmarks.gpu.report import Report
from benchmarks.gpu.sequence import Conditions, run_stages
from benchmarks.gpu.stages import STAGES

ROOT = Path(__file__).parents[2]


def main() -> int:
    names = [stage.name for stage in STAGES]
    about = "\n".join(f"  {s.name:<14}{s.seconds:>4.0f} s  {s.about}" for s in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=f"{__doc__}\nStages, with their time limits:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE", help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-results"), help="default: runs/gpu-results")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/gpu-work"), help="what runs use again (default: runs/gpu-work)"
    )
    parser.add_argument(
        "--carried", type=Path, default=Path(".gpu-carry"), help="folder of wheels (default: .gpu-carry)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small numbers on a GPU, too")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes: expected more than 0, got {arguments.minutes:g}")
    begun = time.monotonic()
    small = arguments.small or arguments.device == "cpu"
    command = f"python -m benchmarks.gpu --minutes {arguments.minutes:g} --device {arguments.device}"
    command += " --small" if arguments.small else ""
    command += f" --stages {' '.join(arguments.stages)}" if arguments.stages != names else ""
    report = Report(arguments.out, command, small)
    report.write()
    try:
        arguments.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--work {arguments.work}: {error.strerror}; name a folder that can be written")
    name_source(ROOT, arguments.work / "site")
    site, notes = install(arguments.carried, arguments.work / "site")
    for note in notes:
        print(note, flush=True)
    paths = [str(path) for path in (site, ROOT) if path is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
                   "PYTHONUNBUFFERED": "1"}  # fmt: skip
    how = Conditions(arguments.device, small, arguments.work.resolve(), begun + 60 * arguments.minutes, environment)
    run_stages([stage for stage in STAGES if stage.name in arguments.stages], how, report)
    print(f"\n{report.markdown()}")
    if not report.trouble:
        print(f"{arguments.out / 'results.md'}, results.json, log.txt")
    return int(any(stage.state in ("failed", "over time") for stage in report.stages))


if __name__ == "__main__":
    sys.exit(main())
