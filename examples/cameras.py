"""Many cameras, one detector: what each camera sees, and the state of its connection.

    python examples/cameras.py best.onnx rtsp://10.0.0.1/1 rtsp://10.0.0.2/1 ...

Each camera has a thread that decodes its newest frame. The detector takes the frames that are there, at most one of
each camera, as a batch. A camera that disconnects is connected again, and never stops the others. Ctrl-C ends.
"""

import argparse
import logging
import time
from collections import Counter

from runtime import Detector, StreamOptions, Streams


def main() -> None:
    parser = argparse.ArgumentParser(description="Many cameras, one detector.")
    parser.add_argument("model")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--every", type=int, default=1, help="take each n-th frame only")
    parser.add_argument("--report", type=float, default=5.0, help="seconds between reports")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")  # cameras that disconnect and come back are logged

    detector = Detector(arguments.model)
    seen: Counter[tuple[int, str]] = Counter()
    frames, reported = 0, time.monotonic()
    with Streams(arguments.sources, StreamOptions(every=arguments.every, give_up_s=3600)) as streams:
        try:
            for frame, detections in streams.detect(detector, batch=16):
                frames += 1
                seen.update((frame.source, name) for name in detections.names)
                if time.monotonic() - reported > arguments.report:
                    report(streams, seen)
                    reported = time.monotonic()
        except KeyboardInterrupt:
            pass  # the usual end of such a program; leaving the block ends the threads
        report(streams, seen)
    print(f"{frames} frames")


def report(streams: Streams, seen: "Counter[tuple[int, str]]") -> None:
    for state in streams.states:
        found = ", ".join(f"{count} {name}" for (source, name), count in sorted(seen.items()) if source == state.source)
        print(f"{state.name}: {state.state}, {state.frames} frames, {state.dropped} dropped; {found or 'nothing seen'}")


if __name__ == "__main__":
    main()
