"""The timing cache: TensorRT's measurements of earlier builds, a file for each GPU and version.

A build without it takes minutes, because it times every kernel; with it, seconds. Measurements of one GPU or version
are not valid for another.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from export.options import Say
from runtime.backends.trt.library import Library
from runtime.files.write import cache_folder, replacing

if TYPE_CHECKING:
    import tensorrt


def cache_path(library: Library, gpu: str, sm: int) -> Path:
    """The file of that library on that GPU, in the user's cache folder. Raises OSError if there is no such folder."""
    device = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder("EngineOptions.timing_cache") / f"{library.flavour}-{library.version}-sm{sm}-{device}.timing"


def use_cache(config: tensorrt.IBuilderConfig, path: Path, say: Say) -> None:
    """Give the measurements in `path` to a build; without a usable file the build starts with an empty cache."""
    content = b""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        say(f"timing cache: {path} cannot be read ({error.strerror})")
    cache: tensorrt.ITimingCache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        say(f"timing cache: {path} ({len(content) / 2**20:.1f} MB)" if content else f"timing cache: new, {path}")
        return
    say(f"timing cache: {path} is of another GPU or version, or broken; a new one takes its place")
    config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_cache(config: tensorrt.IBuilderConfig, path: Path, say: Say) -> None:
    """Write the build's measurements to `path`, atomically. A failure is only said, because the engine matters more."""
    cache: tensorrt.ITimingCache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with replacing(path) as partial:
            partial.write_bytes(bytes(cache.serialize()))
    except OSError as error:
        say(f"timing cache: {path} cannot be kept ({error.strerror}); the next build measures anew")
