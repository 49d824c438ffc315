"""The decoder `nvidia`, against a stand-in with the members of PyNvVideoCodec 2.2 that it uses; a GPU is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.streams.capture import StreamError
from runtime.streams.open import open_source
from tests.runtime.cameras import turned_by_matrix, video


class ThreadedDecoder:
    """RGB frames in host memory that is written over by the next frame, not turned, as NVIDIA's."""

    ended = 0

    def __init__(
        self, enc_file_path: str, buffer_size: int, gpu_id: int = 0, use_device_memory: bool = True,
        output_color_type: str = "native",
    ) -> None:  # fmt: skip
        assert not use_device_memory and output_color_type == "rgb" and buffer_size >= 1
        self._video = cv2.VideoCapture(enc_file_path)
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not self._video.isOpened():
            raise RuntimeError("Demuxer: error\nat line 12")
        self._memory: np.ndarray | None = None

    def get_stream_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(average_fps=self._video.get(cv2.CAP_PROP_FPS), num_frames=3)

    def get_batch_frames(self, batch_size: int) -> list[np.ndarray]:
        found, image = self._video.read()
        if not found:
            return []
        if self._memory is None:
            self._memory = np.empty_like(image)
        self._memory[:] = image[..., ::-1]
        return [self._memory]

    def end(self) -> None:
        type(self).ended += 1


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> type[ThreadedDecoder]:
    ThreadedDecoder.ended = 0
    module: Any = SimpleNamespace(ThreadedDecoder=ThreadedDecoder, OutputColorType=SimpleNamespace(RGB="rgb"))
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    return ThreadedDecoder


def blues(path: Path) -> Path:
    """Three frames, each of another blue, with a red corner."""
    frames = [np.full((64, 96, 3), (blue, 0, 0), np.uint8) for blue in (60, 120, 180)]
    for image in frames:
        image[:24, :24] = (0, 0, 255)
    return video(path, frames)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_it_gives_what_opencv_gives(
    tmp_path: Path, nvidia: type[ThreadedDecoder], matrix: tuple[int, int, int, int]
) -> None:
    path = blues(tmp_path / "a.mp4")
    turned_by_matrix(path, matrix)
    expected, got = open_source(path), open_source(path, decoder="nvidia")
    assert (got.count, got.fps, got.live) == (expected.count, expected.fps, expected.live) == (3, 10.0, False)
    frames = list(got)  # all of them kept: none may be written over
    assert [f.time_s for f in frames] == pytest.approx([0.0, 0.1, 0.2])
    for one, other in zip(expected, frames, strict=True):
        assert (one.image == other.image).all()
    assert nvidia.ended == 1


def test_skipped_frames_are_decoded_and_dropped(tmp_path: Path, nvidia: type[ThreadedDecoder]) -> None:
    frames = list(open_source(blues(tmp_path / "a.mp4"), decoder="nvidia", every=2))
    assert [f.index for f in frames] == [0, 2] and abs(int(frames[1].image[40, 60, 0]) - 180) < 12


def test_errors_say_what_to_do(tmp_path: Path, nvidia: type[ThreadedDecoder], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(StreamError, match=r"text\.mp4: cannot be decoded on the GPU \(Demuxer: error\); is it a video"):
        open_source(tmp_path / "text.mp4", decoder="nvidia")
    for source in (0, "rtsp://camera/1"):
        with pytest.raises(StreamError, match="the decoder nvidia reads video files"):
            open_source(source, decoder="nvidia")
    source = open_source(blues(tmp_path / "a.mp4"), decoder="nvidia")
    monkeypatch.setattr(ThreadedDecoder, "get_batch_frames", lambda *_: (_ for _ in ()).throw(RuntimeError("lost\nx")))
    with pytest.raises(StreamError, match=r"a\.mp4: cannot be decoded any further \(lost\)$"):
        list(source)
    assert nvidia.ended == 1
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(StreamError, match=r"pip install 'isodet\[nvidia\]', or take the decoder opencv"):
        open_source(tmp_path / "a.mp4", decoder="nvidia")


def test_a_machine_without_the_driver_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "PyNvVideoCodec.py").write_text("raise RuntimeError('Failed to load NVENC library\\n\\nTROUBLESHOOTING')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    with pytest.raises(StreamError, match=r"finds no GPU that decodes: Failed to load NVENC library$"):
        open_source(blues(tmp_path / "a.mp4"), decoder="nvidia")


@pytest.mark.skipif("not __import__('importlib').util.find_spec('PyNvVideoCodec')", reason="PyNvVideoCodec is missing")
def test_on_a_gpu(tmp_path: Path) -> None:
    path = blues(tmp_path / "a.mp4")
    try:
        frames = list(open_source(path, decoder="nvidia"))
    except StreamError as error:
        pytest.skip(str(error))
    for one, other in zip(open_source(path), frames, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 16
