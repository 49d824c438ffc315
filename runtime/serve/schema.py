"""The answers of a server as its OpenAPI description shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ErrorAnswer(BaseModel):
    """What is wrong, and what was expected."""

    error: str


class DetectionAnswer(BaseModel):
    """An object that was found."""

    box_xyxy: tuple[float, float, float, float] = Field(description="pixels of the picture, upright")
    score: float
    label: int
    name: str


class StagesAnswer(BaseModel):
    """Milliseconds. inference: of the whole batch that the picture was in."""

    decode: float
    queue: float
    inference: float


class PictureAnswer(BaseModel):
    """A picture: its name in the request, its size in pixels, upright, and what was found, by falling score."""

    name: str
    width: int
    height: int
    detections: list[DetectionAnswer]
    time_ms: StagesAnswer


class DetectAnswer(BaseModel):
    """graph: SHA-256 of the graph that answered. time_ms: from the head of the request to its answer."""

    model: str
    graph: str
    pictures: list[PictureAnswer]
    time_ms: float


PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"picture": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
"""A picture as the body, or several as the parts of a form."""

_REASONS = {
    400: "a body that cannot be read", 401: "no API key, or a wrong one", 404: "no such model",
    408: "the body took too long", 413: "the body or a picture is too large", 415: "a kind of picture that is not read",
    422: "not a picture, or a wrong parameter", 429: "the queue is full", 500: "the server failed",
    501: "the engine cannot do this", 503: "the server is ending", 504: "no answer before the deadline",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason} for status, reason in _REASONS.items()
}
"""The errors of a request for detections."""
