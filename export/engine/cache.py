"""The timing cache: what TensorRT measured in earlier builds, kept for each GPU and version.

A build without it takes minutes, because it times every kernel anew; with it, seconds. Another GPU or version has
another file, because the measurements of one mean nothing to the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends.trt.library import Library
from runtime.files.write import cache_folder, replacing

if TYPE_CHECKING:
    import tensorrt


def cache_path(library: Library, gpu: str, sm: int) -> Path:
    """Where the measurements of that library on that GPU are kept, in the user's folder for caches. Raises OSError
    where there is no such folder.
    """
    device = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder("EngineOptions.timing_cache") / f"{library.flavour}-{library.version}-sm{sm}-{device}.timing"


def use_cache(config: tensorrt.IBuilderConfig, path: Path, say: Callable[[str], None]) -> None:
    """Give the measurements in `path` to a build; a file that is missing or of another GPU starts an empty one."""
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


def keep_cache(config: tensorrt.IBuilderConfig, path: Path, say: Callable[[str], None]) -> None:
    """Write what the build measured to `path`, whole or not at all; the engine is worth more than that."""
    cache: tensorrt.ITimingCache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with replacing(path) as partial:
            partial.write_bytes(bytes(cache.serialize()))
    except OSError as error:
        say(f"timing cache: {path} cannot be kept ({error.strerror}); the next build measures anew")
