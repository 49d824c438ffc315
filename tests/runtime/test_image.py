from __future__ import annotations

import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.images.image import FILL, ImageError, Letterbox, letterbox, read_image, write_image
from tests.at_fault import raises


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


sides = st.integers(1, 3000)


@settings(max_examples=300, deadline=None)
@given(sides, sides, sides, sides)
def test_letterbox_fits_and_touches_one_side(h: int, w: int, height: int, width: int) -> None:
    placement = Letterbox.fit((h, w), (height, width))
    new_h, new_w = placement.resized_hw
    assert 1 <= new_h <= height and 1 <= new_w <= width
    assert new_h == height or new_w == width
    scale = min(height / h, width / w)
    assert (new_h, new_w) == (max(1, round(h * scale)), max(1, round(w * scale)))


@settings(max_examples=300, deadline=None)
@given(sides, sides, sides, sides, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back_from_the_input(h: int, w: int, height: int, width: int, shares: list[float]) -> None:
    placement = Letterbox.fit((h, w), (height, width))
    xs, ys = sorted(shares[:2]), sorted(shares[2:])
    boxes = np.array([[xs[0] * w, ys[0] * h, xs[1] * w, ys[1] * h], [0, 0, w, h]], np.float32)
    inside = placement.to_input(boxes)
    assert inside.dtype == np.float32
    new_h, new_w = placement.resized_hw
    assert (inside[1] == [0, 0, new_w, new_h]).all()
    np.testing.assert_allclose(placement.to_source(inside), boxes, rtol=1e-6, atol=1e-3)


def test_to_source_clips_to_the_frame() -> None:
    placement = Letterbox.fit((100, 200), (64, 64))
    assert placement.to_source([[-5, -5, 64, 64], [10, 40, 20, 60]]).tolist() == [
        [0, 0, 200, 100],
        [31.25, 100, 62.5, 100],
    ]
    assert placement.to_source(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("source", [(48, 64), (97, 33), (1, 1), (500, 3), (64, 64), (31, 640)])
def test_letterbox_is_one_opencv_resize_on_gray(source: tuple[int, int]) -> None:
    image = noise(*source)
    canvas, placement = letterbox(image, (64, 96))
    h, w = placement.resized_hw
    expected = np.full((64, 96, 3), FILL, np.uint8)
    expected[:h, :w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    assert canvas.dtype == np.uint8 and (canvas == expected).all()


def test_letterbox_writes_into_the_array_given_and_takes_views() -> None:
    image = noise(40, 80)[:, ::-1]
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    placement = Letterbox.fit((40, 80), (32, 32))
    placement.apply(image, batch[1])
    assert (batch[1] == letterbox(np.ascontiguousarray(image), (32, 32))[0]).all() and not batch[0].any()


def test_letterbox_refuses_empty_and_foreign_frames() -> None:
    with pytest.raises(ValueError, match="at least 1x1, got frame 0x5"):
        Letterbox.fit((0, 5), (32, 32))
    with pytest.raises(ValueError, match=r"expected uint8 \[4, 4, 3\], got float32 \[4, 4, 3\]"):
        Letterbox.fit((4, 4), (32, 32)).apply(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_pictures_come_back(tmp_path: Path, suffix: str) -> None:
    image = noise(20, 30)
    write_image(tmp_path / f"a{suffix}", image)
    assert (read_image(tmp_path / f"a{suffix}") == image).all()
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_gray_and_alpha_become_bgr(tmp_path: Path) -> None:
    for name, pixels in {"gray": np.full((4, 5), 7, np.uint8), "alpha": np.full((4, 5, 4), 7, np.uint8)}.items():
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        image = read_image(tmp_path / f"{name}.png")
        assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image == 7).all()


def exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entry + struct.pack(">I", 0) + thumbnail
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def jpeg(image: np.ndarray, *params: int) -> bytes:
    return cv2.imencode(".jpg", image, list(params))[1].tobytes()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, share: float, progressive: int) -> None:
    data = jpeg(noise(64, 64), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    (tmp_path / "whole.jpg").write_bytes(data)
    assert read_image(tmp_path / "whole.jpg").shape == (64, 64, 3)
    (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.jpg: truncated JPEG"):
        read_image(tmp_path / "cut.jpg")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path) -> None:
    plain = jpeg(noise(64, 64))
    data = plain[:2] + exif(1, thumbnail=jpeg(noise(8, 8))) + plain[2:]
    (tmp_path / "whole.jpg").write_bytes(data + b"trailing bytes of a camera")
    assert read_image(tmp_path / "whole.jpg").shape == (64, 64, 3)
    (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * 0.8)])
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("restart", [0, 1, 4])
def test_restart_markers_and_stuffed_bytes_are_part_of_the_picture(tmp_path: Path, restart: int) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(noise(200, 200), cv2.IMWRITE_JPEG_RST_INTERVAL, restart))
    assert read_image(tmp_path / "a.jpg").shape == (200, 200, 3)


@pytest.mark.parametrize("cut", [20, 200, 4000, -13, -1])
def test_a_truncated_png_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.png").write_bytes(cv2.imencode(".png", noise(40, 40))[1].tobytes()[:cut])
    with pytest.raises(ImageError, match="truncated PNG"):
        read_image(tmp_path / "cut.png")


def test_a_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = bytearray(cv2.imencode(".png", noise(40, 40))[1].tobytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="checksum of its IDAT chunk"):
        read_image(tmp_path / "a.png")


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with raises(ImageError, path=tmp_path / "gone.jpg", image="gone.jpg") as missing:
        read_image(tmp_path / "gone.jpg")
    assert missing.value.path == tmp_path / "gone.jpg"
    again = pickle.loads(pickle.dumps(missing.value))
    assert isinstance(again, ImageError) and str(again) == str(missing.value) and again.reason == missing.value.reason
    with raises(ImageError, path=tmp_path, image=tmp_path.name):
        read_image(tmp_path)
    for content, message in ((b"", "empty"), (b"hello", "not a picture"), (b"\xff\xd8\xff\xd9", "not a picture")):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "a.jpg")
    with raises(ImageError, path=tmp_path / "a.unknown", image="a.unknown"):
        write_image(tmp_path / "a.unknown", noise(4, 4))
