"""Every format that OpenCV decodes says its size in its header, and is refused by it; HEIC is told by its content."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import features

from runtime.__main__ import main
from runtime.datasets import read_dataset
from runtime.datasets.annotations import HEIC, DatasetError
from runtime.images.encoded import MAX_PIXELS, encoded_format, encoded_size, exif_orientation
from runtime.images.image import ImageError, decode_image, read_image, write_image
from runtime.images.image_header import image_size
from runtime.images.picture_files import list_pictures
from runtime.streams.open import StreamError, expand, open_source

Encode = Callable[[np.ndarray], bytes]


def opencv(suffix: str, *options: int) -> Encode:
    def encode(image: np.ndarray) -> bytes:
        if not cv2.haveImageWriter("a" + suffix):
            pytest.skip(f"this OpenCV writes no {suffix}")
        return cv2.imencode(suffix, image, list(options))[1].tobytes()

    return encode


def pillow(kind: str, mode: str = "RGB", **options: object) -> Encode:
    def encode(image: np.ndarray) -> bytes:
        if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind, "pil")):
            pytest.skip(f"this Pillow writes no {kind}")
        buffer = io.BytesIO()
        Pillow.fromarray(image[..., ::-1]).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


def os2_bmp(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    rows = np.zeros((height, -(-width * 3 // 4) * 4), np.uint8)
    rows[:, : width * 3] = image[::-1].reshape(height, -1)
    header = struct.pack("<IHHHH", 12, width, height, 1, 24)
    return b"BM" + struct.pack("<IHHI", 26 + rows.size, 0, 0, 26) + header + rows.tobytes()


def plain_map(image: np.ndarray) -> bytes:
    head = b"P3\n# 7 7\n%d # wide\n \t%d\n# depth\n255\n" % (image.shape[1], image.shape[0])
    return head + " ".join(map(str, image[..., ::-1].ravel())).encode() + b"\n"


def radiance(image: np.ndarray) -> bytes:
    head = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % image.shape[:2]
    return head + bytes(4 * image.shape[0] * image.shape[1])


def big_tiff(image: np.ndarray, order: str = "<", width_kind: str = "Q") -> bytes:
    """Uncompressed, with sizes as LONG8."""
    height, width = image.shape[:2]
    kind = {"Q": 16, "I": 4, "H": 3}[width_kind]
    start = 16 + 8 + 20 * 10 + 8 + 8
    entries = [
        (256, kind, 1, width), (257, kind, 1, height), (258, 3, 3, None), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 16, 1, start), (277, 3, 1, 3), (278, 4, 1, height), (279, 16, 1, image.nbytes), (284, 3, 1, 1),
    ]  # fmt: skip
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16)
    data += struct.pack(order + "Q", len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack(order + "HHQ", tag, kind, count)
        if value is None:
            data += struct.pack(order + "3Hxx", 8, 8, 8)
        else:
            data += struct.pack(order + {16: "Q", 4: "I", 3: "H"}[kind], value).ljust(8, b"\0")
    return data.ljust(start, b"\0") + image[..., ::-1].tobytes()


ENCODERS: dict[str, Encode] = {
    "jpeg": opencv(".jpg"), "progressive": opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "png": opencv(".png"),
    "bmp": opencv(".bmp"), "os2": os2_bmp, "gif": opencv(".gif"),
    "tiff": opencv(".tiff"), "big_tiff": pillow("TIFF", big_tiff=True), "big_tiff_long8": big_tiff,
    "big_tiff_motorola": lambda image: big_tiff(image, ">", "I"),
    "webp_lossy": opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 80), "webp_lossless": opencv(".webp"),
    "webp_canvas": pillow("WEBP", exif=b"Exif\0\0MM\0*"), "webp_alpha": pillow("WEBP", "RGBA", quality=80),
    "avif": opencv(".avif"), "pbm": lambda image: opencv(".pbm")(image[..., 0]),
    "pgm": lambda image: opencv(".pgm")(image[..., 0]), "ppm": opencv(".ppm"), "plain_ppm": plain_map,
    "pam": opencv(".pam"), "pfm": lambda image: opencv(".pfm")(image.astype(np.float32)),
    "gray_pfm": lambda image: opencv(".pfm")(image[..., 0].astype(np.float32)),
    "jp2": opencv(".jp2"), "codestream": pillow("JPEG2000", no_jp2=True), "sun": opencv(".sr"),
    "hdr": opencv(".hdr"), "flat_hdr": radiance,
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size_hw", [(32, 32), (37, 53), (65, 300), (300, 41)])
def test_the_header_says_what_is_decoded(name: str, size_hw: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    data = ENCODERS[name](image)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        pytest.skip("this OpenCV does not decode it")
    assert encoded_size(data) == pixels.shape[:2] == size_hw and encoded_format(data[:256])
    assert decode_image(data, "a").shape == (*size_hw, 3)
    (tmp_path / "a").write_bytes(data)
    assert image_size(tmp_path / "a") == size_hw
    assert encoded_size(data[:8]) is None
    for cut in range(80):
        encoded_size(data[:cut])  # no error of its own: the reader says what is wrong
        exif_orientation(data[:cut])


TRUNCATED = ("jpeg", "progressive", "png", "bmp", "webp_lossy", "webp_lossless", "tiff")


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.7, 0.95, 0.99])
def test_a_file_that_is_cut_is_refused(name: str, share: float) -> None:
    data = ENCODERS[name](np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="truncated" if name in TRUNCATED else None):
        decode_image(data[: int(len(data) * share)], "a")


def isobmff(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I4s4sI", 16 + 4 * len(compatible), b"ftyp", brand, 0) + b"".join(compatible)


def codestream(right: int, bottom: int, left: int) -> bytes:
    return b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, right, bottom, left, 0) + bytes(28)


SIDE = 20_000
HUGE: dict[str, bytes] = {
    "os2": b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, SIDE, SIDE, 1, 1),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, SIDE, -SIDE, 1, 1, 0) + bytes(20),
    "big_tiff": big_tiff(np.broadcast_to(np.uint8(0), (8, 8, 3))).replace(
        struct.pack("<HHQQ", 257, 16, 1, 8), struct.pack("<HHQQ", 257, 16, 1, 1 << 40)
    ),
    "tiff_with_two_widths": b"II*\0" + struct.pack(
        "<IH HHIi HHII HHII I", 8, 3, 256, 9, 1, SIDE, 256, 4, 1, 1, 257, 4, 1, SIDE, 0
    ),
    "gif": b"GIF89a" + struct.pack("<HH", SIDE, SIDE),
    "pbm": b"P4\n%d %d\n" % (SIDE, SIDE),
    "plain_pbm": b"P1 # 1 1\n#\r\n%d\n#2\n%d\n1" % (SIDE, SIDE),
    "pam": b"P7\nWIDTH 1\nHEIGHT %d\nWIDTH %d\nDEPTH 1\nMAXVAL 1\nENDHDR\n" % (SIDE, SIDE),
    "pfm": b"Pf\n%d %d\n-1.0\n" % (SIDE, SIDE),
    "codestream": codestream(SIDE, SIDE, 0),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + isobmff(b"jp2 ", b"jp2 ") + struct.pack(">I4s", 60, b"free")
    + codestream(1, 1, 0) + struct.pack(">I4sQ", 1, b"jp2c", 99) + codestream(SIDE + 5, SIDE, 5),
    "webp_canvas": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + (SIDE - 1).to_bytes(3, "little") * 2 + bytes(8),
    "sun": struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 1, 0, 1, 0, 0),
    "radiance": b"#?RGBE\n-Y 1 +X 1\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (SIDE, SIDE),
    "jpeg_behind_junk": b"\xff\xd8\xff\xfe\0\x02junk\xff\xc0\0\x11\x08" + struct.pack(">HH", SIDE, SIDE) + bytes(10),
}  # fmt: skip


TOO_MANY = rf"a: \d+x\d+ \(width x height\) are more than {MAX_PIXELS} pixels"


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)


@pytest.mark.parametrize("name", HUGE)
def test_a_header_that_claims_too_much_is_refused_without_decoding(name: str, no_decoder: None) -> None:
    with pytest.raises(ImageError, match=TOO_MANY):
        decode_image(HUGE[name], "a")


def test_an_avif_that_claims_too_much_is_refused_without_decoding(no_decoder: None) -> None:
    data, sides = pillow("AVIF")(np.zeros((30, 50, 3), np.uint8)), struct.pack(">II", 50, 30)
    assert encoded_size(data) == (30, 50) and sides in data
    with pytest.raises(ImageError, match=TOO_MANY):
        decode_image(data.replace(sides, struct.pack(">II", SIDE, SIDE), 1), "a")


@pytest.mark.parametrize(
    "data",
    [b"P6\n5x5\n255\n", b"P7\nDEPTH 1\nENDHDR\n", b"#?RADIANCE\n\n+Y 3 +X 5\n", b"GIF89a",
     b"II+\0\x08\0\0\0" + b"\xff" * 9,
     b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0ftyp", b"RIFF\x08\0\0\0WEBPVP8X", b"\x59\xa6\x6a\x95"],
)  # fmt: skip
def test_a_known_format_without_a_size_is_not_decoded(data: bytes, no_decoder: None) -> None:
    with pytest.raises(ImageError, match="a: (not a picture that OpenCV can decode|truncated TIFF): .* no size"):
        decode_image(data, "a")


# From here on: HEIC
HEICS = [
    isobmff(b"heic", b"mif1", b"heic"), isobmff(b"heix", b"mif1"), isobmff(b"hevc", b"msf1", b"hevc"),
    isobmff(b"mif1", b"mif1", b"heic"), isobmff(b"msf1", b"hevc"), isobmff(b"heic"),
]  # fmt: skip


@pytest.mark.parametrize("data", HEICS)
@pytest.mark.parametrize("name", ["photo.heic", "photo.HEIF", "photo.jpg", "photo.mp4", "photo"])
def test_heic_is_told_by_its_content(name: str, data: bytes, tmp_path: Path, no_decoder: None) -> None:
    path = tmp_path / name
    path.write_bytes(data + bytes(100))
    with pytest.raises(ImageError, match=rf"{name}: is a HEIC picture.*convert it to JPEG"):
        read_image(path)
    with pytest.raises(ImageError, match="HEIC"):
        open_source(path)
    assert expand(str(tmp_path / "*")) == [str(tmp_path / "*")]  # pictures, not a video each


@pytest.mark.parametrize(
    "data", [isobmff(b"avif", b"mif1", b"miaf"), isobmff(b"mif1", b"avif", b"heic"), isobmff(b"isom", b"mif1", b"mp41")]
)
def test_what_is_not_heic(data: bytes) -> None:
    assert encoded_format(data) != "HEIC"


def test_detect_says_that_a_file_is_heic(tmp_path: Path, capsys: pytest.CaptureFixture[str], onnx_file: Encode) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(HEICS[0] + bytes(100))
    argv = ["--model", str(onnx_file()), "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main(["detect", str(path), *argv]) == 1
    shown = capsys.readouterr().err
    assert "photo.heic: is a HEIC picture" in shown and "heif-convert" in shown


def test_a_folder_leaves_heic_out_and_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.heic").write_bytes(HEICS[0])
    with pytest.raises(StreamError, match=r"no pictures in this folder .*1 are HEIC: convert it to JPEG"):
        open_source(tmp_path)
    with pytest.raises(StreamError, match=r"matches no pictures, but .*1 are HEIC: convert it to JPEG"):
        open_source(str(tmp_path / "*"))
    write_image(tmp_path / "2.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "3.gif").write_bytes(b"GIF89a")
    assert [path.name for path in list_pictures(sorted(tmp_path.iterdir())).left_out] == ["1.heic", "3.gif"]
    with caplog.at_level(logging.WARNING):
        assert len(list(open_source(tmp_path))) == len(list(open_source(str(tmp_path / "*")))) == 1
    assert "(.heic); 1 are HEIC" in caplog.text, "of the glob"
    assert "2 files are no pictures that are read (.gif, .heic); 1 are HEIC: convert it to JPEG" in caplog.text


def test_a_data_set_leaves_heic_out_and_says_what_to_do(tmp_path: Path) -> None:
    for place in ("images", "labels"):
        (tmp_path / place).mkdir()
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    (tmp_path / "images" / "b.heic").write_bytes(HEICS[0])
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match="HEIC.*convert it to JPEG"):
        read_dataset(tmp_path / "data.yaml")
    write_image(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = read_dataset(tmp_path / "data.yaml")
    assert len(data) == 1 and data.problems.counts[HEIC] == 1 and "convert it to JPEG" in data.problems.summary()
