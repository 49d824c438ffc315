from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import LogCaptureFixture, MonkeyPatch

from runtime.detections import Detections
from runtime.images import draw
from runtime.images.draw import class_color, draw_detections, sheet


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


sides = st.integers(1, 400)


@settings(max_examples=60)
@given(sides, sides, st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 2))
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
