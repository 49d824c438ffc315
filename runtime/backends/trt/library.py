"""TensorRT and TensorRT-RTX: which of them is installed, and what to install where neither is.

They are two Python modules with one interface. All other code uses a `Library` and does not know their names.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.backends.protocol import BackendError

Flavour = Literal["tensorrt", "rtx"]
_LIBRARIES = {"tensorrt": ("TensorRT", "tensorrt", "trt"), "rtx": ("TensorRT-RTX", "tensorrt_rtx", "rtx")}
"""Name, Python module and extra of each."""

INSTALL = (
    "pip install 'isodet[trt]' brings TensorRT (data center GPUs, Jetson, RTX cards; it builds on the GPU that the "
    "engine is for), pip install 'isodet[rtx]' brings TensorRT-RTX (GeForce and RTX cards from Turing on; it builds "
    "without a GPU)"
)


@dataclass(frozen=True)
class Library:
    """An imported engine library."""

    flavour: Flavour
    trt: Any
    """The module `tensorrt` or `tensorrt_rtx`."""

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def name(self) -> str:
        """Such as 'TensorRT-RTX 1.7.1.116'."""
        return f"{_LIBRARIES[self.flavour][0]} {self.version}"


def load_library(flavour: Flavour) -> Library:
    """The library of that flavour. Raises `BackendError` that says what to install."""
    name, module, extra = _LIBRARIES[flavour]
    try:
        return Library(flavour, importlib.import_module(module))
    except (ImportError, OSError, RuntimeError) as error:  # without its shared libraries it raises any of these
        advice = f"pip install 'isodet[{extra}]' ({' '.join(str(error).split())})"
        raise BackendError(f"{name} is not installed here: {advice}") from error


def choose_library(flavour: Flavour | Literal["auto"], gpus: int) -> Library:
    """The library to build engines with. `auto` prefers TensorRT on a machine with GPUs, else it takes TensorRT-RTX.

    gpus: the number of GPUs of this machine. Raises `BackendError` that says what to install for which GPU.
    """
    if flavour == "tensorrt" and gpus == 0:
        raise BackendError(
            "TensorRT builds on the GPU that the engine is for, and there is none here; take --engine rtx, which "
            "builds without one, or build on the machine that will run it"
        )
    if flavour != "auto":
        return load_library(flavour)
    reasons = []
    order: tuple[Flavour, ...] = ("tensorrt", "rtx") if gpus else ("rtx",)
    for candidate in order:
        try:
            return load_library(candidate)
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError(f"no engine library can be used here: {INSTALL}; tried: {'; '.join(reasons)}")


@dataclass
class Messages:
    """The warnings and errors that a library logged."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def why(self) -> str:
        """The last three errors in one line, as they say most."""
        return "; ".join(" ".join(line.split()) for line in self.errors[-3:]) or "it gave no reason"


def collecting_logger(library: Library, messages: Messages) -> Any:
    """A logger of the library that keeps warnings and errors in `messages` and prints nothing."""
    trt = library.trt
    worst = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Collecting(trt.ILogger):  # type: ignore[name-defined]  # known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # its bindings insist on being called by name

        def log(self, severity: Any, text: str) -> None:
            if severity in worst:
                messages.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                messages.warnings.append(text)

    return Collecting()


def load_plugins(library: Library, logger: Any) -> None:
    """Register NVIDIA's plugins (TensorRT-RTX has none). Raises `BackendError` where that fails."""
    trt = library.trt
    if library.flavour != "rtx" and not trt.init_libnvinfer_plugins(logger, ""):
        raise BackendError(f"{library.name} cannot load its plugins (libnvinfer_plugin missing or of another version)")
