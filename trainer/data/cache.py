"""Decoded training pictures, kept in memory or on disk and shared by all loader processes.

One mapped file has a slot for each picture. Slots are assigned once, from the annotated sizes, until the budget is
spent: so the cache never grows past it, and no picture is dropped to be decoded again. A slot is valid only while the
checksum of its pixels is right and the picture file has the same size and time of change; else the picture is decoded,
as without a cache. The pixels are the same either way, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from isodet.strict import ConfigError
from runtime.datasets.annotations import ImageRecord
from runtime.files.write import cache_folder
from runtime.images.image import Image, read_image
from trainer.config.data import DataConfig
from trainer.data.shared_memory import SharedMemory
from trainer.devices.free_memory import available_memory

_SLOT = np.dtype([("mtime_ns", "i8"), ("size", "i8"), ("height", "i4"), ("width", "i4"), ("crc", "u4"), ("full", "u4")])
_VERSION = 1


def reduced_hw(hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width with the longer side at most `longest` pixels; 0 changes nothing."""
    if not longest or max(hw) <= longest:
        return hw
    scale = longest / max(hw)
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


class Pictures:
    """Reads pictures, without a cache."""

    def __init__(self, reduce_to: int = 0) -> None:
        self.reduce_to = reduce_to

    def read(self, path: Path) -> Image:
        """The picture as `read_image` gives it, its longer side reduced to `reduce_to`. Raises `ImageError`."""
        image = read_image(path)
        h, w = reduced_hw((image.shape[0], image.shape[1]), self.reduce_to)
        if (h, w) == image.shape[:2]:
            return image
        return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8)

    def describe(self) -> str:
        """A sentence for the log; '' without a cache."""
        return ""


class CachedPictures(Pictures):
    """`Pictures` with slots. A copy that is sent to another process maps the same memory or file."""

    def __init__(
        self, records: Sequence[ImageRecord], budget: int, reduce_to: int, folder: Path | None, share: int = 1
    ) -> None:
        """`budget`: bytes. `folder`: of the file on disk; None for memory, where `share` processes each have a cache.

        Raises `ConfigError` where there is not enough memory or disk.
        """
        super().__init__(reduce_to)
        sizes = {record.path: reduced_hw((record.height, record.width), reduce_to) for record in records}
        self.pictures = len(sizes)
        self.slots: dict[Path, tuple[int, int, int]] = {}
        """Picture to (number, offset, bytes) of its slot."""
        position = 0
        for path, (h, w) in sizes.items():
            size = h * w * 3
            if position + size + (len(self.slots) + 1) * _SLOT.itemsize <= budget:
                self.slots[path] = (len(self.slots), position, size)
                position += size
        self.total = len(self.slots) * _SLOT.itemsize + position
        self.file = None if folder is None else self._reserved(folder) if self.slots else ""
        if folder is None and self.slots:
            self._require_memory(share)
        self._memory = SharedMemory(self.total, self.file or None)

    def _require_memory(self, share: int) -> None:
        free = available_memory()
        if free is not None and self.total * share > free:
            raise ConfigError(
                f"data.cache_gib: the cache would take {_gib(self.total * share)} GiB, but {_gib(free)} GiB of memory "
                "are free; lower data.cache_gib, or set data.cache: disk"
            )
        if not hasattr(os, "memfd_create"):
            raise ConfigError("data.cache: ram needs Linux; set data.cache: disk")

    def _reserved(self, folder: Path) -> str:
        """The slot file in `folder`, made at its full size where it is not there yet."""
        plan = hashlib.sha256(f"{_VERSION} {self.reduce_to}\n".encode())
        for path, slot in self.slots.items():
            plan.update(f"{path.resolve()} {slot}\n".encode())
        file = folder / f"{plan.hexdigest()[:32]}.pictures"
        if not file.is_file() or file.stat().st_size != self.total:
            partial = folder / f".{file.name}.{os.getpid()}.partial"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as opened:
                    # Reserved, because a mapped file that meets a full disk kills the process.
                    os.posix_fallocate(opened.fileno(), 0, self.total)
                os.replace(partial, file)
            except OSError as error:
                raise ConfigError(
                    f"data.cache_dir: cannot reserve {_gib(self.total)} GiB in {folder}: {error.strerror}; lower "
                    "data.cache_gib, or name another folder"
                ) from None
            finally:
                partial.unlink(missing_ok=True)
        return str(file)

    @property
    def _table(self) -> NDArray[Any]:
        """[slots] the file and the pixels that each slot holds."""
        return self._memory.array(len(self.slots), _SLOT)

    @property
    def _pixels(self) -> NDArray[np.uint8]:
        """The bytes of all slots, one behind the other."""
        table = len(self.slots) * _SLOT.itemsize
        return self._memory.array(self.total - table, np.uint8, table)

    def read(self, path: Path) -> Image:
        slot = self.slots.get(path)
        try:
            stat = path.stat()
        except OSError:
            slot = None  # reading it raises the error
        if slot is None:
            return super().read(path)
        number, offset, size = slot
        pixels = self._pixels[offset : offset + size]
        entry = self._table[number].copy()
        h, w = int(entry["height"]), int(entry["width"])
        unchanged = (int(entry["mtime_ns"]), int(entry["size"])) == (stat.st_mtime_ns, stat.st_size)
        if entry["full"] and unchanged and h * w * 3 == size:
            image: Image = pixels.reshape(h, w, 3).copy()  # first: the checksum must be that of the returned pixels
            if zlib.crc32(image.data) == int(entry["crc"]):
                return image
        image = super().read(path)
        if image.size == size:  # otherwise the annotated size is wrong, and there is no room
            pixels[:] = image.reshape(-1)
            # Last, so that another process never takes half a picture for complete: the checksum is still wrong.
            self._table[number] = (
                stat.st_mtime_ns, stat.st_size, image.shape[0], image.shape[1], zlib.crc32(image.data), 1,
            )  # fmt: skip
        return image

    def describe(self) -> str:
        where = "in memory" if self.file is None else f"on disk ({self.file})" if self.file else "on disk"
        return f"picture cache: room for {len(self.slots)} of {self.pictures} pictures, {_gib(self.total)} GiB {where}"


def pictures_for(config: DataConfig, records: Sequence[ImageRecord], processes: int = 1) -> Pictures:
    """The reader of training pictures by `config`, for one of `processes` on this machine. Raises `ConfigError`."""
    if config.cache == "none":
        return Pictures(config.reduce_to)
    folder = None
    if config.cache == "disk":
        try:
            folder = cache_folder("data.cache_dir") if config.cache_dir is None else Path(config.cache_dir)
        except OSError as error:
            raise ConfigError(f"data.cache: {error}") from None
    # Each process has its own memory, but all share a file on disk. Together they take at most cache_gib.
    share = processes if folder is None else 1
    return CachedPictures(records, int(config.cache_gib * 2**30 / share), config.reduce_to, folder, share)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
