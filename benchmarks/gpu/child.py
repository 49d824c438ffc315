"""The process of one stage: measures, and sends each row to the process that started it."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu.stage import NotHere, Setting, one_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument(
        "--channel", type=int, required=True, help="file descriptor that rows go to, a line of JSON each"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    faulthandler.enable()  # a crash in a library leaves the Python lines that led to it in the log
    setting = Setting(arguments.device, arguments.small, arguments.work, time.monotonic() + arguments.seconds)
    os.set_inheritable(arguments.channel, False)
    with os.fdopen(arguments.channel, "w", encoding="utf-8", buffering=1) as channel:

        def send(kind: str, content: object) -> None:
            channel.write(json.dumps({kind: content}) + "\n")

        try:
            for row in importlib.import_module(arguments.module).rows(setting):
                send("row", row.to_json())
        except NotHere as error:
            send("not here", str(error))
        except ModuleNotFoundError as error:
            traceback.print_exc()
            send("not here", f"{error}; it is not installed here")
        except Exception as error:  # the last word of this process: it goes to the report, the traceback to the log
            traceback.print_exc()
            send("failed", f"{type(error).__name__}: {one_line(error)}")
            return 1
        else:
            send("done", "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
