"""Pictures and cameras in an asyncio program: python examples/coroutines.py best.onnx a.jpg b.jpg clip.mp4 ...

Every source is a task of its own. Frames that wait at the same time run as one batch. The event loop stays free.
"""

import asyncio
import sys

from runtime import Batcher, Detector, Streams


async def watch(source: str, batcher: Batcher) -> None:
    """Print how many objects a source showed."""
    frames = objects = 0
    with Streams([source]) as streams:
        reading = iter(streams)
        # Decoding is ahead in its own thread; waiting for it must not stop the event loop.
        while (frame := await asyncio.to_thread(next, reading, None)) is not None:
            detections = await batcher.detect(frame.image, stream=source)
            frames, objects = frames + 1, objects + len(detections)
    print(f"{source}: {objects} objects in {frames} frames")


async def main(model: str, sources: list[str]) -> None:
    with Detector(model).batcher(max_batch=8, max_wait_ms=4) as batcher:
        await asyncio.gather(*(watch(source, batcher) for source in sources))
    metrics = batcher.metrics()  # complete once it is closed
    print(f"{metrics.answered} frames in {metrics.batches} batches, median {metrics.p50_ms or 0:.1f} ms")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
