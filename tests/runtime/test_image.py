"""Pictures: letterboxed, read and written, turned, and drawn into."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps, features
from pytest import LogCaptureFixture, MonkeyPatch

from runtime.datasets.annotations import Row, make_record
from runtime.datasets.orientation import oriented, rotate_boxes
from runtime.detections import Detections
from runtime.images import draw
from runtime.images.draw import class_color, draw_detections, sheet
from runtime.images.encoded import exif_orientation
from runtime.images.image import FILL, ImageError, Letterbox, decode_image, letterbox, read_image, write_image
from runtime.images.image_header import image_size
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


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path) -> None:
    plain = jpeg(noise(64, 64))
    data = plain[:2] + exif(1, thumbnail=jpeg(noise(8, 8))) + plain[2:]
    (tmp_path / "whole.jpg").write_bytes(data + b"trailing bytes of a camera")
    assert read_image(tmp_path / "whole.jpg").shape == (64, 64, 3)
    (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * 0.8)])
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(tmp_path / "cut.jpg")


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


# From here on: size and orientation
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]


def saved(path: Path, kind: str, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"BMP": {}, "WEBP": {"exif": exif, "lossless": True}}.get(kind, {"exif": exif, "quality": 95})
    Pillow.fromarray(pixels).save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_and_orientation_are_those_of_the_picture_as_read(tmp_path: Path, kind: str, orientation: int) -> None:
    orientation = 1 if kind == "BMP" else orientation
    path = saved(tmp_path / "a", kind, np.zeros((30, 50, 3), np.uint8), orientation)
    assert image_size(path) == read_image(path).shape[:2] == ((50, 30) if orientation == 6 else (30, 50))
    assert exif_orientation(path.read_bytes()) == orientation


def with_prefixed_exif(data: bytes) -> bytes:
    """A WebP whose chunk of EXIF begins as JPEG's segment does, as some writers begin it."""
    at = data.index(b"EXIF")
    content = b"Exif\0\0" + data[at + 8 :]
    chunks = data[12:at] + b"EXIF" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "WEBP of a JPEG's prefix", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(tmp_path: Path, kind: str, orientation: int) -> None:
    """By every OpenCV alike: before 4.13 it turned no WebP, and later none whose EXIF begins as a JPEG's does."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8)
    path = saved(tmp_path / "a.picture", kind.split()[0], pixels, orientation)
    if kind.startswith("WEBP of"):
        path.write_bytes(with_prefixed_exif(path.read_bytes()))
    with Pillow.open(saved(tmp_path / "meant", "PNG", pixels, orientation)) as picture:
        meant = np.asarray(ImageOps.exif_transpose(picture))
    try:
        seen = read_image(path)
    except ImageError:
        assert kind == "AVIF"
        pytest.skip("this OpenCV reads no AVIF")
    assert exif_orientation(path.read_bytes()) == orientation and seen.shape == meant.shape
    assert np.abs(seen[..., ::-1].astype(int) - meant).mean() <= (6 if kind in ("JPEG", "AVIF") else 0)
    assert kind != "JPEG" or (seen == cv2.imread(str(path))).all()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00", b"\x89PNG\r\n\x1a\n\0\0", b"II*\0\xff\xff\xff\xff",
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff",
    ],
)  # fmt: skip
def test_headers_that_are_cut_short(tmp_path: Path, data: bytes) -> None:
    assert exif_orientation(data) == 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ImageError):
        image_size(tmp_path / "a")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_as_the_pixels_do(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[4:12, 10:30] = 255
    path = saved(tmp_path / "a.png", "PNG", pixels, orientation)
    rows, columns = np.nonzero(read_image(path)[..., 0])
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    stored = make_record(1, path, 40, 60, [Row((10, 4, 30, 12), 0, False, 160)])
    turned = oriented(stored, (60, 40))
    assert turned.boxes_xyxy.tolist() == [seen] and (turned.height, turned.width) == (60, 40)
    assert rotate_boxes(np.zeros((0, 4), np.float32), (40, 60), orientation).shape == (0, 4)


def test_sizes_that_no_orientation_explains_are_errors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "PNG", np.zeros((60, 40, 3), np.uint8))
    record = make_record(1, path, 40, 60, [])
    assert oriented(record, (40, 60)) is record
    with pytest.raises(ImageError, match=r"is 40x60 but its annotation says 60x40 .* no EXIF orientation"):
        oriented(record, (60, 40))
    with pytest.raises(ImageError, match=r"is 7x5 but its annotation says 60x40 \(width x height\)$"):
        oriented(record, (5, 7))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_high_byte(kind: str, channels: int) -> None:
    deep = (np.arange(24 * channels, dtype=np.uint16) * 900 + 200).reshape(4, 6, channels)
    data = cv2.imencode(f".{kind.lower()}", deep)[1].tobytes()
    assert (decode_image(data, "x") == np.broadcast_to(deep >> 8, (4, 6, 3))).all()


def test_cmyk_palette_and_float_pictures(tmp_path: Path) -> None:
    red = Pillow.new("RGB", (24, 16), (200, 100, 50))
    buffer = io.BytesIO()
    red.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(decode_image(buffer.getvalue(), "x").astype(int) - (50, 100, 200)).max() <= 3
    red.convert("P", palette=Pillow.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert np.abs(read_image(tmp_path / "p.png").astype(int) - (50, 100, 200)).max() <= 3
    with pytest.raises(ImageError, match="float32 samples; expected 8 or 16 bits"):
        decode_image(cv2.imencode(".tiff", np.ones((4, 6, 3), np.float32))[1].tobytes(), "x")


# From here on: drawing
def found(
    boxes: list[list[float]], labels: list[int], names: tuple[str, ...] = ("ant", "bee", "Ünïcode ☃")
) -> Detections:
    scores = np.linspace(0.9, 0.5, len(labels), dtype=np.float32)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(labels, np.int32), names)


def test_a_box_is_drawn_where_it_is_and_the_frame_is_left_alone() -> None:
    frame = np.zeros((300, 400, 3), np.uint8)
    image = draw_detections(frame, found([[100, 100, 300, 250]], [1]))
    assert not frame.any() and image.shape == frame.shape and image.dtype == np.uint8
    color = class_color(1)
    for y, x in ((250, 200), (180, 100), (180, 300)):
        assert tuple(image[y, x]) == color
    assert not image[150:240, 120:280].any()  # the object itself stays visible
    assert (image[80:98, 101:140] == color).all(-1).any()  # its chip stands above


def test_nothing_found_changes_nothing() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert (draw_detections(frame, Detections.empty(("ant",))) == frame).all()


frame_sides = st.integers(1, 400)


@settings(max_examples=60)
@given(frame_sides, frame_sides, st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 2))
def test_every_box_in_every_frame_can_be_drawn(h: int, w: int, shares: list[float], label: int) -> None:
    xs, ys = sorted(shares[:2]), sorted(shares[2:])
    image = draw_detections(
        np.zeros((h, w, 3), np.uint8), found([[xs[0] * w, ys[0] * h, xs[1] * w, ys[1] * h]], [label])
    )
    assert image.shape == (h, w, 3) and image.any()


@pytest.mark.parametrize("box", [[0, 0, 30, 30], [370, 0, 400, 30], [370, 270, 400, 300], [0, 270, 30, 300]])
def test_a_whole_chip_is_inside_the_frame(box: list[float]) -> None:
    chips = []
    for b in (box, [150, 150, 180, 180]):
        image = draw_detections(np.zeros((300, 400, 3), np.uint8), found([b], [0]))
        chips.append(
            int((image.reshape(-1, 3) != class_color(0)).any(1).sum() - (image.reshape(-1, 3) == 0).all(1).sum())
        )
    assert abs(chips[0] - chips[1]) <= 0.15 * chips[1]  # as many pixels of ink as in the middle: no letter is cut


def test_colors_differ_and_stay() -> None:
    colors = [class_color(i) for i in range(80)]
    assert len(set(colors)) == 80 and colors[3] == class_color(3)
    assert all(isinstance(v, int) and 0 <= v <= 255 for color in colors for v in color)
    near = min(np.abs(np.subtract(colors[i], colors[i + 1])).sum() for i in range(79))
    assert near > 100


def test_a_sheet_holds_every_picture_once() -> None:
    images = [np.full((40 + 10 * i, 80, 3), 100 + 20 * i, np.uint8) for i in range(5)]
    canvas = sheet(images, columns=3, cell_hw=(60, 90), captions=[f"{i}.png" for i in range(5)])
    assert canvas.shape == (2 * 64 + 4, 3 * 94 + 4, 3)
    for i in range(5):
        y, x = 4 + (i // 3) * 64, 4 + (i % 3) * 94
        assert (canvas[y + 3, x + 3] == 100 + 20 * i).all()
    assert (canvas[-30:, -60:] == 32).all()  # the sixth cell is empty
    assert sheet(images[:2], columns=9, cell_hw=(60, 90)).shape == (68, 2 * 94 + 4, 3)
    assert sheet(images[:1], 1, (16, 16), ["a caption that is far too long for this cell"]).shape == (24, 24, 3)


def test_a_sheet_refuses_what_cannot_be() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    for images, columns, cell in (([], 1, (60, 60)), ([image], 0, (60, 60)), ([image], 1, (8, 60))):
        with pytest.raises(ValueError, match="expected at least one image"):
            sheet(images, columns, cell)
    with pytest.raises(ValueError, match="expected 1 captions"):
        sheet([image], 1, (60, 60), ["a", "b"])


NAMES = ["Тарелка", "łódź", "Rückleuchte", "車", "ไทย", "चाय", "قطار", "\udc80raw"]


@pytest.mark.parametrize("unicode", [draw._DRAWS_UNICODE, False])
def test_names_of_any_script_stay_apart(unicode: bool, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture) -> None:
    monkeypatch.setattr(draw, "_DRAWS_UNICODE", unicode)
    draw._tell_of_letters.cache_clear()
    shown = [draw.drawable(name) for name in NAMES]
    assert "?" not in "".join(shown) and len(set(shown)) == len(NAMES)
    assert [message for message in caplog.messages if "drawn as their code points" in message] == caplog.messages
    assert len(caplog.messages) == 1, "said once, not for every box"
    if unicode:
        assert shown[:4] == NAMES[:4]
    else:
        assert shown[1:4] == ["lodz", "Ruckleuchte", "\\u8eca"]
    pictures = [
        draw.draw_boxes(np.zeros((80, 200, 3), np.uint8), [[10, 30, 60, 70]], [name], [(0, 200, 255)]) for name in NAMES
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(NAMES)


def test_plain_names_are_drawn_as_they_are(caplog: LogCaptureFixture) -> None:
    assert draw.drawable("car 93%\n2") == "car 93% 2" and caplog.messages == []
