"""`runtime bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from isodet.errors import ArgumentError
from runtime.bench.bench import BenchOptions, BenchTable, bench
from runtime.bench.pick import Pick, pick
from runtime.commands.arguments import flag
from runtime.commands.shared import MODELS, InTiles, OnDevice, Quiet, chosen, updates, write_json


@dataclass(frozen=True, kw_only=True)
class Bench(InTiles, OnDevice, Quiet):
    """Time a model on this machine.

    Every stage, one by one and end to end, against the engine alone; then streams, if asked.

    artifact: an .onnx, .engine or .pt file (default: the newest run's)
    pick: only say which engine runs this .onnx file fastest here, one frame at a time
    json: write the timings there, too

    examples:
      runtime bench best.onnx
      runtime bench best.onnx --batch 1,4,8 --frame 1080,1920 --seconds 5 --threads 1
      runtime bench best.onnx --batch 16 --streams 1,8,32         cameras through one batcher
      runtime bench best.onnx --frame 2160,3840 --tiles auto      what tiles cost
      runtime bench best.pt --device cuda --json bench.json
      runtime bench best.onnx --pick --threads 1                  ONNX Runtime or OpenVINO?

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
    pick: bool = False
    json: Annotated[Path | None, flag(metavar="FILE")] = None

    def run(self) -> int:
        model = chosen(self.artifact, *MODELS)
        with tqdm(unit="step", disable=self.quiet) as bar:
            result: BenchTable | Pick
            if self.pick:
                if self.engine != "auto":
                    raise ArgumentError.of("engine", "leave it out with --pick, which times each")
                how = self.backend_options
                result = pick(model, self.options, self.device, self.threads, how, self.tiling, updates(bar))
            else:
                result = bench(
                    model,
                    self.options,
                    device=self.device,
                    threads=self.threads,
                    backend_options=self.backend_options,
                    tiles=self.tiling,
                    progress=updates(bar),
                )
        print(result.table())
        write_json(self.json, result.to_json())
        return 0
