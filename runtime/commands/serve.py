"""`runtime serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from isodet.errors import IsodetError
from runtime.commands.arguments import count, flag, number
from runtime.commands.shared import MODELS, OnDevice, chosen
from runtime.detector import Detector
from runtime.serve.keys import read_keys
from runtime.serve.models import Models, named_paths
from runtime.serve.options import Access, ServeOptions

_PACKAGES = {"fastapi", "uvicorn", "h11", "starlette", "pydantic", "python_multipart", "prometheus_client"}
_port = number("a port from 0 to 65535", lambda value: 0 <= value <= 65535, int)


@dataclass(frozen=True, kw_only=True)
class Serve(OnDevice):
    """Serve models by HTTP.

    One process, one engine and one queue for each model; requests that come at the same time run as one batch. A model
    whose file changes, or at SIGHUP, is loaded again beside the old one. SIGTERM and Ctrl-C answer what was taken.

    artifact: .onnx, .engine or .pt files; NAME=FILE names a model other than its file (default: the newest run's)
    host: address to listen at; 0.0.0.0: for other machines, too
    port: 0: a free one
    api_keys: file of keys, one a line; each request but health checks must have one
    cors: origin of web pages that may read the answers, as https://example.com; may be given several times

    examples:
      runtime serve best.onnx
      runtime serve day=day.onnx night=night.onnx --port 8080 --threads 4
      runtime serve best.onnx --host 0.0.0.0 --api-keys keys.txt
      curl --data-binary @street.jpg 'http://127.0.0.1:8000/v1/detect?threshold=0.5'
      curl -F a=@street.jpg -F b=@yard.jpg http://127.0.0.1:8000/v1/detect
      curl http://127.0.0.1:8000/metrics
    """

    artifact: Annotated[tuple[str, ...], flag("artifact")] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, flag(type=_port)] = 8000
    api_keys: Annotated[Path | None, flag(metavar="FILE")] = None
    cors: Annotated[tuple[str, ...], flag(action="append", metavar="ORIGIN")] = ()
    options: Annotated[ServeOptions, {
        "max_batch": flag(type=count, metavar="N"), "max_wait_ms": flag(metavar="MS"),
        "queue": flag(type=count, metavar="N"), "deadline_ms": flag(metavar="MS"),
        "max_body_mb": flag(metavar="MB"), "max_pixels": flag(type=count, metavar="N"),
        "max_pictures": flag(type=count, metavar="N"), "body_seconds": flag(metavar="S"),
        "decoders": flag(type=count, metavar="N"), "drain_seconds": flag(metavar="S"),
        "page": flag(help="leave out the page at /, where models are tried in a browser"),
    }] = ServeOptions()  # fmt: skip

    def __post_init__(self) -> None:
        _ = named_paths(self.artifact)  # raises for two models of one name

    def run(self) -> int:
        try:
            from runtime.serve.server import serve
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _PACKAGES:
                raise
            raise IsodetError(f"needs the package {error.name!r}: pip install 'isodet[serve]'") from None
        paths = named_paths(self.artifact or (str(chosen(None, *MODELS)),))
        access = Access(() if self.api_keys is None else read_keys(self.api_keys), self.cors)
        backend_options = self.backend_options

        def load(path: Path) -> Detector:
            return Detector(path, self.device, threads=self.threads, options=backend_options)

        def started(models: Models, address: str) -> None:
            for name, model in models.items():
                print(f"{name}: {model.path}, {model.current.detector.runs_on}")
            print(f"serving at {address}", flush=True)
            if not access.keys and not _is_loopback(self.host):
                print("warning: other machines may ask, and no key is needed: see --api-keys", file=sys.stderr)

        logging.getLogger("runtime.serve").setLevel(logging.INFO)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each body that it cannot read
        answered = serve(paths, load, self.options, access, self.host, self.port, started)
        print("ended" if answered else "ended with requests that were not answered", flush=True)
        if not answered:  # at once: threads that hang in an engine would keep the process
            sys.stderr.flush()
            os._exit(1)
        return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
