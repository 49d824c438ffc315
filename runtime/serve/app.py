"""The HTTP interface: addresses, parameters and answers."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from isodet.errors import IsodetError
from isodet.strict import nearest
from runtime.serve.body import read_body
from runtime.serve.detect import DetectionService
from runtime.serve.errors import RequestError, answer_error, error_response
from runtime.serve.gate import OPEN, Gate, ServerState
from runtime.serve.kserve import HEADER, TensorService, model_metadata
from runtime.serve.metrics import CONTENT_TYPE, Metrics
from runtime.serve.models import Models, ServedModel
from runtime.serve.options import Access, ServeOptions
from runtime.serve.page.routes import add_page, page_files
from runtime.serve.schema import ERRORS, PICTURE_BODY, DetectAnswer

Threshold = Annotated[
    str | None, Query(description="lowest score, 0 to 1; card: the model's recommendation for each class")
]
Classes = Annotated[str | None, Query(description="names of classes with commas between; others are left out")]


def make_app(
    models: Models,
    options: ServeOptions,
    access: Access,
    state: ServerState,
    decoders: Executor,
    tensor_worker: Executor,
) -> FastAPI:
    """The ASGI application that serves `models`. It decodes pictures in the threads of `decoders`, and runs tensors of
    the KServe protocol in `tensor_worker`, which has one thread.

    The caller closes all three when it is done with the application.
    """
    metrics = Metrics(models)
    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(title="isodet", version=_version(), docs_url=None, redoc_url=None)
    # More than this cannot be in a batch and in a queue, so the rest would only hold their bodies in memory.
    most = 2 * len(models) * (options.queue + options.max_batch)
    page = page_files() if options.page else {}
    # The page has no secrets, and a browser that opens it has no key yet: it asks for one.
    app.add_middleware(Gate, state=state, keys=access.keys, metrics=metrics, most=most, open_paths=(*OPEN, *page))
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
        )
    app.add_exception_handler(IsodetError, _answer_isodet_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unexpected)
    add_page(app, page)
    _add_health(app, state, metrics)
    _add_models(app, models)
    _add_detect(app, models, DetectionService(options, metrics, decoders), options)
    _add_kserve(app, models, TensorService(options, tensor_worker), options, metrics)
    return app


def _add_health(app: FastAPI, state: ServerState, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Whether the process lives")
    async def health() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", summary="Whether requests are taken", responses={503: ERRORS[503]})
    @app.get("/v2/health/ready", summary="KServe: whether requests are taken", responses={503: ERRORS[503]})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": not state.draining}, 503 if state.draining else 200)

    @app.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def read_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", summary="The models")
    async def list_models() -> dict[str, list[dict[str, Any]]]:
        return {"models": [model.to_json() for model in models.values()]}

    @app.get("/v1/models/{name}", summary="A model and its card", responses={404: ERRORS[404]})
    async def show_model(name: str) -> dict[str, Any]:
        model = model_of(models, name)
        return {**model.to_json(), "card": model.current.detector.card.to_json()}


def _add_detect(app: FastAPI, models: Models, service: DetectionService, options: ServeOptions) -> None:
    async def answer(request: Request, model: ServedModel, threshold: str | None, classes: str | None) -> JSONResponse:
        begun = time.monotonic()
        request.state.model = model.name
        _require_known_query(request, ("threshold", "classes"))
        body = await read_body(request, options)
        parts = await service.parts(body, request.headers.get("content-type", ""))
        return JSONResponse(await service.detect(model, parts, threshold, classes, begun))

    @app.post(
        "/v1/detect",
        summary="Detect with the only model",
        response_model=DetectAnswer,
        responses=ERRORS,
        openapi_extra=PICTURE_BODY,
    )
    async def detect(request: Request, threshold: Threshold = None, classes: Classes = None) -> JSONResponse:
        if len(models) > 1:
            raise RequestError(404, f"there are several models: POST /v1/models/NAME/detect; NAME: {', '.join(models)}")
        (model,) = models.values()
        return await answer(request, model, threshold, classes)

    @app.post(
        "/v1/models/{name}/detect",
        summary="Detect with a model",
        response_model=DetectAnswer,
        responses=ERRORS,
        openapi_extra=PICTURE_BODY,
    )
    async def detect_with(
        request: Request, name: str, threshold: Threshold = None, classes: Classes = None
    ) -> JSONResponse:
        return await answer(request, model_of(models, name), threshold, classes)


def _add_kserve(app: FastAPI, models: Models, service: TensorService, options: ServeOptions, metrics: Metrics) -> None:
    @app.get("/v2", summary="KServe: the server")
    async def show_server() -> dict[str, Any]:
        return {"name": "isodet", "version": app.version, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", summary="KServe: whether the process lives")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/models/{name}", summary="KServe: inputs and outputs of a model", responses={404: ERRORS[404]})
    async def show_tensors(name: str) -> dict[str, Any]:
        return model_metadata(model_of(models, name))

    @app.get("/v2/models/{name}/ready", summary="KServe: whether a model is loaded", responses={404: ERRORS[404]})
    async def model_ready(name: str) -> dict[str, Any]:
        return {"name": model_of(models, name).name, "ready": True}

    @app.post("/v2/models/{name}/infer", summary="KServe: run the graph", responses=ERRORS)
    async def infer(request: Request, name: str) -> Response:
        begun, model = time.monotonic(), model_of(models, name)
        request.state.model = model.name
        body = await read_body(request, options)
        content, json_bytes = await service.infer(model, body, request.headers.get(HEADER))
        metrics.seconds.labels(model.name, "whole").observe(time.monotonic() - begun)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER: str(json_bytes)}, media_type="application/octet-stream")


def model_of(models: Models, name: str) -> ServedModel:
    """The model of that name. Raises `RequestError` 404 where there is none."""
    if name not in models:
        raise RequestError(404, f"there is no model {name!r}{nearest(name, models)}; models: {', '.join(models)}")
    return models[name]


def _require_known_query(request: Request, names: tuple[str, ...]) -> None:
    """A mistyped parameter would be an answer without it. Raises `RequestError` 422."""
    for name in request.query_params:
        if name not in names:
            raise RequestError(422, f"{name}: unknown parameter{nearest(name, names)}; expected {', '.join(names)}")


def _version() -> str:
    try:
        return version("isodet")
    except PackageNotFoundError:  # run from its source
        return "source"


async def _answer_isodet_error(request: Request, error: Exception) -> Response:
    return answer_error(error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # FastAPI's own: no such address, or another method
    reason = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what there is"
    return error_response(error.status_code, reason, error.headers)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return error_response(500, "the server failed; its log says why")  # where uvicorn writes the traceback
