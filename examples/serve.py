"""A server that takes a picture by HTTP and answers with detections: to start one of your own from.

`runtime serve` is the whole of it: limits, several models, metrics, new weights without an end (docs/serve.md).

    ISODET_MODEL=best.onnx uvicorn examples.serve:app
    curl --data-binary @street.jpg 'http://127.0.0.1:8000/detect?threshold=0.5'

Needs the extras serve and cpu or gpu: pip install "isodet[serve,cpu]"
Requests that come at the same time run as one batch.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request

from runtime import Detector, ImageError, QueueFull, decode_image

LARGEST = 20_000_000
"""The most bytes of a picture."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Detector(os.environ["ISODET_MODEL"]).batcher(
        max_batch=16, max_wait_ms=4, queue=64, policy="refuse"
    ) as batcher:
        app.state.batcher = batcher
        yield


app = FastAPI(title="isodet", lifespan=lifespan)


@app.post("/detect")
async def detect(
    request: Request, threshold: Annotated[float | None, Query(ge=0, le=1)] = None
) -> list[dict[str, Any]]:
    """The body is a picture file. The answer is a list of box_xyxy (pixels of the picture), score, label and name."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise HTTPException(413, f"expected a picture of at most {LARGEST} bytes")
    try:
        picture = await asyncio.to_thread(decode_image, bytes(data), "the body")
    except ImageError as error:
        raise HTTPException(415, str(error)) from None
    try:
        found = await app.state.batcher.detect(picture, threshold=threshold)
    except QueueFull:
        raise HTTPException(503, "busy; try again", headers={"Retry-After": "1"}) from None
    return found.to_json()
