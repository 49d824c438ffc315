"""A request for detections: from its pictures to the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.batcher.admission import BatcherClosed, DeadlineExpired
from runtime.batcher.queue import DetectionFuture
from runtime.detections import Detections
from runtime.detector import Threshold
from runtime.serve.body import Part, pictures_of
from runtime.serve.metrics import Metrics
from runtime.serve.models import Loaded, ServedModel
from runtime.serve.options import ServeOptions
from runtime.serve.pictures import decode_part


class Choice(NamedTuple):
    """What of the detections a request asks for.

    threshold: None for the model's own. classes: names; None for all.
    """

    threshold: Threshold | None
    classes: tuple[str, ...] | None

    @classmethod
    def of(cls, threshold: str | None, classes: str | None, known: Sequence[str]) -> Choice:
        """From the texts of the query, for a model with the classes `known`. Raises `ArgumentError`."""
        score: Threshold | None = None
        if threshold == "card":
            score = "card"
        elif threshold is not None:
            try:
                score = float(threshold)
            except ValueError:
                score = -1.0
            if not 0 <= score <= 1:
                raise ArgumentError.of("threshold", f"expected a score from 0 to 1, or card; got {threshold!r}")
        if classes is None:
            return cls(score, None)
        names = tuple(name.strip() for name in classes.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ArgumentError.of("classes", f"unknown class {unknown[0]!r}; known: {', '.join(known)}")
        return cls(score, names)


class _Submitted(NamedTuple):
    """A picture on its way through the batcher. Times are seconds of `time.monotonic`."""

    name: str
    size_hw: tuple[int, int]
    future: DetectionFuture
    begun: float
    queued: float


class DetectionService:
    """Answers requests for detections, for all models of a server; pictures are decoded in threads of `decoders`."""

    def __init__(self, options: ServeOptions, metrics: Metrics, decoders: Executor) -> None:
        self._options, self._metrics, self._decoders = options, metrics, decoders

    async def parts(self, body: bytes, content_type: str) -> list[Part]:
        """The pictures of a request, as `pictures_of`: a large form takes too long for the event loop."""
        most = self._options.pictures_per_request
        return await asyncio.get_running_loop().run_in_executor(self._decoders, pictures_of, body, content_type, most)

    async def detect(
        self, model: ServedModel, parts: Sequence[Part], threshold: str | None, classes: str | None, begun: float
    ) -> dict[str, Any]:
        """The answer for `parts`: `threshold` and `classes` as in the query, `begun` when the request came (seconds of
        `time.monotonic`).

        Raises `RequestError`, `ImageError` or `ArgumentError` for what the client can change, `QueueFull`,
        `DeadlineExpired` where the answer was not there in time, `BatcherClosed` where the server ends.
        """
        deadline = time.monotonic() + self._options.deadline_ms / 1000
        while True:
            loaded = model.current
            choice = Choice.of(threshold, classes, loaded.detector.class_names)
            try:
                submitted = await self._submit(loaded, parts, choice, deadline)
                break
            except BatcherClosed:
                if model.current is loaded:
                    raise  # not closed because another one took its place
        detections = await self._answers(submitted, deadline)
        now = time.monotonic()
        self._metrics.pictures.labels(model.name).inc(len(parts))
        self._metrics.seconds.labels(model.name, "whole").observe(now - begun)
        return {
            "model": model.name,
            "graph": loaded.graph,
            "pictures": [
                {
                    "name": picture.name,
                    "width": picture.size_hw[1],
                    "height": picture.size_hw[0],
                    "detections": exact_json(found if choice.classes is None else found.filter(classes=choice.classes)),
                    "time_ms": self._times(model.name, picture),
                }
                for picture, found in zip(submitted, detections, strict=True)
            ],
            "time_ms": _milliseconds(now - begun),
        }

    async def _submit(self, loaded: Loaded, parts: Sequence[Part], choice: Choice, deadline: float) -> list[_Submitted]:
        """Decode and submit `parts`: all of them, or none where one of them meets an error."""
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, self._load, loaded, part, choice, deadline) for part in parts]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        submitted = [result for result in results if isinstance(result, _Submitted)]
        if errors:
            _cancel(submitted)
            raise errors[0]
        return submitted

    def _load(self, loaded: Loaded, part: Part, choice: Choice, deadline: float) -> _Submitted:
        """Decode `part` and submit it, in a decoder's thread: so each thread holds one decoded picture at most."""
        begun = time.monotonic()
        if begun >= deadline:
            raise DeadlineExpired(f"{part.name}: {self._late('decoded')}")
        image = decode_part(part, self._options.max_pixels)
        left_ms = max(0.0, deadline - time.monotonic()) * 1000
        future = loaded.batcher.submit(image, deadline_ms=left_ms, threshold=choice.threshold)
        return _Submitted(part.name, (image.shape[0], image.shape[1]), future, begun, time.monotonic())

    async def _answers(self, submitted: Sequence[_Submitted], deadline: float) -> list[Detections]:
        waiting = asyncio.gather(*(asyncio.wrap_future(picture.future) for picture in submitted))
        try:
            return await asyncio.wait_for(waiting, max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise DeadlineExpired(self._late("answered")) from None
        finally:
            _cancel(submitted)  # what has run is not affected

    def _late(self, what: str) -> str:
        return f"it was not {what} within {self._options.deadline_ms:g} ms (--deadline-ms): the server is overloaded"

    def _times(self, model: str, picture: _Submitted) -> dict[str, float]:
        """Milliseconds of the stages of a picture, which are counted, too."""
        started, finished = picture.future.started, picture.future.finished
        assert started is not None and finished is not None  # it has an answer
        seconds = {
            "decode": picture.queued - picture.begun,
            "queue": max(0.0, started - picture.queued),
            "inference": finished - started,
        }
        for stage, value in seconds.items():
            self._metrics.seconds.labels(model, stage).observe(value)
        return {stage: _milliseconds(value) for stage, value in seconds.items()}


def _cancel(submitted: Sequence[_Submitted]) -> None:
    for picture in submitted:
        picture.future.cancel()


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def exact_json(detections: Detections) -> list[Mapping[str, Any]]:
    """One JSON-ready object for each detection: box_xyxy (pixels), score, label, name.

    Numbers have the fewest digits that give back the same float32: nothing is rounded, as `Detections.to_json` does.
    """
    boxes, scores = _shortest(detections.boxes_xyxy), _shortest(detections.scores)
    rows = zip(boxes, scores, detections.labels.tolist(), detections.names, strict=True)
    return [{"box_xyxy": box, "score": score, "label": label, "name": name} for box, score, label, name in rows]


def _shortest(values: NDArray[np.float32]) -> list[Any]:
    texts: list[Any] = [float(str(value)) for value in values.reshape(-1)]
    return texts if values.ndim == 1 else [texts[i : i + 4] for i in range(0, len(texts), 4)]
