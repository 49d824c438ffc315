"""`runtime bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from runtime.bench.bench import BenchOptions, bench
from runtime.commands.arguments import flag
from runtime.commands.shared import MODELS, InTiles, OnDevice, Quiet, chosen, updates, write_json


@dataclass(frozen=True, kw_only=True)
class Bench(InTiles, OnDevice, Quiet):
    """Time a model on this machine.

    Every stage, one by one and end to end, against the engine alone; then streams, if asked.

    artifact: an .onnx, .engine or .pt file (default: the newest run's)
    json: write the timings there, too

    examples:
      runtime bench best.onnx
      runtime bench best.onnx --batch 1,4,8 --frame 1080,1920 --seconds 5 --threads 1
      runtime bench best.onnx --batch 16 --streams 1,8,32         cameras through one batcher
      runtime bench best.onnx --frame 2160,3840 --tiles auto      what tiles cost
      runtime bench best.pt --device cuda --json bench.json

    how to read it:
      A turn runs one batch end to end, one stage by stage, and one through the engine alone. Times are for the
      whole batch; half of the turns were faster than p50, 99 of 100 faster than p99. "= 98 % of the bare engine's
      images/s" is what detector(frames) leaves of the engine's speed. A stage that has no row could not be told
      apart: the lines at the end say why. Decoding is not part of end to end.
      With --streams, images/s is what the batcher gets through when every stream submits as fast as it may;
      latencies, from submit to the answer, are those at 80 % of that, as a queue that is always full has only one.
    """

    artifact: Annotated[Path | None, flag("artifact")] = None
    options: Annotated[BenchOptions, {
        "batch_sizes": flag("--batch", metavar="N,N,..."), "frame_hw": flag("--frame", metavar="H,W"),
        "picture": flag(), "streams": flag(metavar="N,N,..."), "max_wait_ms": flag("--max-wait", metavar="MS"),
        "seconds": flag(), "iterations": flag(), "warmup": flag(),
    }] = BenchOptions()  # fmt: skip
    json: Annotated[Path | None, flag(metavar="FILE")] = None

    def run(self) -> int:
        with tqdm(unit="step", disable=self.quiet) as bar:
            result = bench(
                chosen(self.artifact, *MODELS),
                self.options,
                device=self.device,
                threads=self.threads,
                check_hashes=not self.skip_hashes,
                tiles=self.tiling,
                progress=updates(bar),
            )
        print(result.table())
        write_json(self.json, result.to_json())
        return 0
