"""The page of the server in a real browser, with a server that is a process of its own.

Needs Chromium with its driver (Debian: chromium, chromium-driver) and the package selenium; skipped where these are
missing.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.card.card import Card
from tests.runtime.cameras import until
from tests.runtime.conftest import make_card, pixel_detector
from tests.runtime.serving import Served, picture, serving

KEY = "0123456789abcdef"
Browser = Any
"""A driver of selenium, which need not be installed."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-proxy-server",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",  # it would call home
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chromium
    finally:
        chromium.quit()


@pytest.fixture(scope="module")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`day` recommends 0.6 for cats and 0.3 for the rest, `night` 0.3; the boxes of `wide` are half as large."""
    folder = tmp_path_factory.mktemp("page")
    day = make_card(thresholds={"cat": 0.6}, metrics={"map": 56.98, "measured_by": "a scale"})
    cards = {"day": day, "night": make_card(), "wide": make_card(input_size_hw=(64, 96))}
    with serving(folder, *(f"{name}={model(folder / f'{name}.onnx', card)}" for name, card in cards.items())) as server:
        yield server


def model(path: Path, card: Card) -> Path:
    path.write_bytes(pixel_detector(card).SerializeToString())
    return path


def script(browser: Browser, text: str, *values: object) -> Any:
    return browser.execute_script(f"const at = (id) => document.getElementById(id); {text}", *values)


def eventually(browser: Browser, condition: str) -> None:
    """Wait until the JavaScript expression is true."""
    end = time.monotonic() + 20
    while not script(browser, f"return Boolean({condition})"):
        assert time.monotonic() < end, (condition, script(browser, "return document.body.innerText"))
        time.sleep(0.02)


def opened(browser: Browser, served: Served) -> None:
    browser.get("about:blank")
    browser.get_log("browser")  # what others left
    browser.get(served.address)
    eventually(browser, "at('left').options.length")


def choose(browser: Browser, *paths: Path) -> None:
    browser.find_element("id", "files").send_keys("\n".join(map(str, paths)))


def png(folder: Path, name: str = "cat.png", bgr: tuple[int, int, int] = (2, 255, 30)) -> Path:
    path = folder / name
    path.write_bytes(picture(bgr=bgr))
    return path


def rows(browser: Browser) -> list[list[str]]:
    """The texts of each row of the list: name, scores, box, and in a comparison who has it."""
    return list(
        script(
            browser, "return [...at('list').children].map((li) => [...li.children].slice(1).map((x) => x.innerText))"
        )
    )


def requests(served: Served) -> float:
    text = served.client.get("/metrics").text
    return sum(
        float(n) for n in re.findall(r'^isodet_requests_total\{model="(?:day|night|wide)".*\} (\S+)$', text, re.M)
    )


@pytest.fixture(autouse=True)
def console(browser: Browser) -> Iterator[None]:
    """Nothing is in the console after a test but statuses of answers, and advice on the pixels that tests read."""
    browser.get_log("browser")
    yield
    entries = [entry for entry in browser.get_log("browser") if entry["source"] != "network"]
    assert [entry for entry in entries if "getImageData" not in entry["message"]] == []


def test_boxes_and_list_are_the_servers_answer(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    path = png(tmp_path, bgr=(0, 200, 25))
    choose(browser, path)
    eventually(browser, "at('list').children.length")
    answer = served.client.post("/v1/models/day/detect?threshold=card", content=path.read_bytes()).json()
    expected = answer["pictures"][0]["detections"]
    assert len(expected) == 2
    for row, one in zip(rows(browser), expected, strict=True):
        assert row == [one["name"], f"{one['score']:.3f}", ", ".join(f"{value:.1f}" for value in one["box_xyxy"])]
    assert script(browser, "return at('summary').innerText") == "2 detections"
    counts = script(browser, "return [...at('classes').children].map((x) => x.innerText.split('\\n'))")
    assert counts == [["ant", "2"], ["bee", "0"], ["cat", "0"]]
    x, y = expected[0]["box_xyxy"][2], expected[0]["box_xyxy"][3] / 2  # its right side, in the color of its class
    edge, color = script(
        browser,
        """const canvas = document.querySelector("#view-left canvas"), scale = canvas.width / 96;
        const pixel = canvas.getContext("2d").getImageData(arguments[0] * scale, arguments[1] * scale, 1, 1).data;
        const swatch = getComputedStyle(at("classes").querySelector(".swatch")).backgroundColor;
        return [[...pixel].slice(0, 3), swatch.match(/\\d+/g).map(Number)]""",
        x,
        y,
    )
    assert np.abs(np.subtract(edge, color)).max() < 40
    times = script(browser, "return [...at('times').tBodies[0].rows[0].cells].map((x) => x.innerText)")
    assert times[0] == "day" and all(float(text) >= 0 for text in times[1:]) and len(times) == 6
    card = script(browser, "at('cards').firstChild.open = true; return at('cards').innerText")
    for text in ("day.onnx", answer["graph"], "48 x 32", "3: ant, bee, cat", "cat 0.600", "56.98", "a scale", "cpu"):
        assert text in card
    assert not browser.get_log("browser")


def test_the_threshold_and_the_classes_act_without_a_request(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    choose(browser, png(tmp_path))
    eventually(browser, "at('list').children.length === 1")  # 1.0 and 0.5, where 0.6 is recommended
    before, slider = requests(served), browser.find_element("id", "threshold")
    slider.send_keys("\ue011")  # Home: 0
    assert len(rows(browser)) == 2 and script(browser, "return at('threshold-value').innerText") == "0.00"
    slider.send_keys("\ue010")  # End: 1
    assert len(rows(browser)) == 1
    slider.send_keys("\ue011")
    browser.find_element("id", "recommended").click()
    assert [row[:2] for row in rows(browser)] == [["cat", "1.000"]]
    browser.find_element("css selector", "#classes label:nth-child(3)").click()
    assert rows(browser) == [] and script(browser, "return at('summary').innerText") == "no detections"
    browser.find_element("id", "all").click()
    assert len(rows(browser)) == 1
    assert requests(served) == before
    assert not browser.get_log("browser")


def test_the_list_is_used_by_keyboard(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    choose(browser, png(tmp_path, bgr=(0, 255, 25)))
    eventually(browser, "at('list').children.length === 2")
    eventually(browser, "at('announce').textContent === 'cat.png: 2 detections'")
    plain = script(browser, "return document.querySelector('#view-left canvas').toDataURL()")
    chosen = "return [...at('list').querySelectorAll('[aria-selected=true]')].map((x) => x.id)"
    listed = browser.find_element("id", "list")
    listed.send_keys("\ue015", "\ue015", "\ue015")  # down, beyond the end
    assert script(browser, chosen) == ["detection-1"]
    assert listed.get_attribute("aria-activedescendant") == "detection-1"
    assert script(browser, "return document.querySelector('#view-left canvas').toDataURL()") != plain
    listed.send_keys("\ue013")  # up
    assert script(browser, chosen) == ["detection-0"]
    listed.send_keys("\ue00c")  # Escape
    assert script(browser, chosen) == []
    assert script(browser, "return document.querySelector('#view-left canvas').toDataURL()") == plain
    unnamed = script(
        browser,
        """return [...document.querySelectorAll("button, input, select, canvas")].filter((x) => x.checkVisibility()
        && !(x.labels?.length || x.innerText?.trim() || x.getAttribute("aria-label"))).map((x) => x.outerHTML)""",
    )
    assert unnamed == []
    assert not browser.get_log("browser")


def test_a_comparison_marks_what_one_model_has(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    choose(browser, png(tmp_path))
    eventually(browser, "at('list').children.length === 1")
    compare_with(browser, "night")
    eventually(browser, "at('summary').innerText === 'both 1, only day 0, only night 1'")
    assert [(row[1], row[3]) for row in rows(browser)] == [("0.500", "only night"), ("1.000 / 1.000", "both")]
    assert script(browser, "return [...document.querySelectorAll('#views canvas')].every((x) => x.clientWidth > 200)")
    browser.find_element("id", "threshold").send_keys("\ue011")
    assert script(browser, "return at('summary').innerText") == "both 2, only day 0, only night 0"
    compare_with(browser, "wide")
    eventually(browser, "at('summary').innerText === 'both 0, only day 2, only wide 2'")
    assert script(browser, "return at('times').tBodies[0].rows.length") == 2
    assert not browser.get_log("browser")


def compare_with(browser: Browser, name: str) -> None:
    script(browser, "at('right').value = arguments[0]; at('right').dispatchEvent(new Event('change'))", name)


def test_pairs_of_boxes_are_the_nearest_of_one_class(browser: Browser, served: Served) -> None:
    opened(browser, served)
    done = browser.execute_async_script(
        """const done = arguments[0], box = (name, x, score) => ({ name, score, box_xyxy: [x, 0, x + 10, 10] });
        import("/page/compare.js").then(({ compare, iou, reaches, recommended }) => done({
          rows: compare([box("a", 0, 1), box("a", 2, 0.9), box("b", 0, 0.8)], [box("a", 2, 1), box("c", 0, 0.5)])
            .map(({ side, left, right }) => [side, left?.box_xyxy[0], right?.box_xyxy[0]]),
          half: iou([0, 0, 10, 10], [0, 0, 10, 5]), apart: iou([0, 0, 1, 1], [1, 0, 2, 1]),
          exact: reaches(box("a", 0, 0.44), new Map([["a", 0.44]])),
          below: reaches(box("a", 0, 0.43999997), new Map([["a", 0.44]])),
          own: [...recommended({ classes: ["a", "b"], threshold: 0.3, thresholds: { b: 0.7 } })],
        }));"""
    )
    assert done["rows"] == [["left", 0, None], ["left", 0, None], ["right", None, 0], ["both", 2, 2]]
    assert done["half"] == 0.5 and done["apart"] == 0 and done["exact"] and not done["below"]
    assert done["own"] == [["a", 0.3], ["b", 0.7]]


def test_errors_are_shown_as_the_server_says_them(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    wrong = tmp_path / "<b>keys</b>.txt".replace("/", "")
    wrong.write_text("hello")
    choose(browser, wrong)
    eventually(browser, "at('error').checkVisibility()")
    error = served.client.post("/v1/models/day/detect", files=[("x", (wrong.name, b"hello"))]).json()["error"]
    assert "expected the bytes of a JPEG" in error
    assert script(browser, "return [at('error').innerText, at('error').children.length]") == [f"{error} (422)", 0]
    choose(browser, png(tmp_path))  # and it goes on
    eventually(browser, "at('list').children.length === 1 && !at('error').checkVisibility()")


def test_a_full_queue_is_told_and_a_video_waits_for_it(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    refuse = """const [status, times] = arguments, real = window.fetch;
        let left = times;
        window.fetch = (path, options) => options.method !== "POST" || left-- <= 0 ? real(path, options)
          : Promise.resolve(new Response('{"error": "come later"}', { status, headers: { "Retry-After": "1" } }));"""
    for status in (429, 503):
        script(browser, refuse, status, 1)
        choose(browser, png(tmp_path))
        eventually(browser, f"at('error').innerText === 'come later ({status})'")
    script(browser, refuse, 429, 1)
    browser.find_element("id", "camera").click()
    eventually(browser, "at('error').innerText === 'come later (429)'")
    eventually(browser, "document.querySelector('#view-left figcaption').innerText === 'camera'")
    eventually(browser, "!at('error').checkVisibility() && at('play').innerText === 'Pause'")
    browser.find_element("id", "stop").click()


def test_pictures_are_dropped_pasted_and_turned_upright(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    choose(browser, png(tmp_path), png(tmp_path, "ant.png", (0, 255, 25)))
    eventually(browser, "at('strip').children.length === 2 && at('list').children.length === 1")
    browser.find_element("css selector", "#strip button:nth-child(2)").click()
    eventually(browser, "at('list').children.length === 2")
    pressed = "return [...at('strip').children].map((x) => x.getAttribute('aria-pressed'))"
    assert script(browser, pressed) == ["false", "true"]
    send = """const data = new DataTransfer(), [kind, name, bytes] = arguments;
        data.items.add(new File([new Uint8Array(bytes)], name));
        window.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: data })
          : new ClipboardEvent("paste", { clipboardData: data }));"""
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: its left side is to be on top
    green_and_red = Image.new("RGB", (96, 64), (10, 255, 2))
    green_and_red.paste((255, 0, 0), (48, 0, 96, 64))
    encoded = io.BytesIO()
    green_and_red.save(encoded, "JPEG", exif=exif)
    tiff = picture(".tiff", hw=(96, 64))
    pictures = [
        ("drop", "a.png", picture(hw=(96, 64))),
        ("drop", "flat.tiff", tiff),
        ("paste", "turned.jpg", encoded.getvalue()),
    ]
    for kind, name, data in pictures:
        script(browser, send, kind, name, list(data))
        eventually(browser, f"document.querySelector('#view-left figcaption').innerText.startsWith('{name}')")
        canvas = browser.find_element("css selector", "#view-left canvas")
        assert canvas.size["height"] / canvas.size["width"] == pytest.approx(1.5, rel=0.02)
        assert rows(browser)
        caption = browser.find_element("css selector", "#view-left figcaption").text
        assert ("cannot show it" in caption) == (name == "flat.tiff")
    assert not browser.get_log("browser")  # before it is read twice, which Chromium remarks upon
    top, bottom = script(
        browser,
        """const canvas = document.querySelector("#view-left canvas"), context = canvas.getContext("2d");
        return [0.3, 0.7].map((y) => [...context.getImageData(canvas.width * 0.9, canvas.height * y, 1, 1).data])""",
    )
    assert top[1] > 200 > top[0] and bottom[0] > 200 > bottom[1]


def test_a_click_at_a_box_selects_the_smallest_there(browser: Browser, served: Served, tmp_path: Path) -> None:
    opened(browser, served)
    choose(browser, png(tmp_path, bgr=(0, 255, 25)))  # boxes [0, 0, 50, 50] and [12.5, 12.5, 25, 25]
    eventually(browser, "at('list').children.length === 2")
    click = """const canvas = document.querySelector("#view-left canvas"), scale = canvas.clientWidth / 96;
        const { left, top } = canvas.getBoundingClientRect(), [x, y] = arguments;
        const at = { clientX: left + x * scale, clientY: top + y * scale, bubbles: true };
        canvas.dispatchEvent(new MouseEvent("click", at));
        return document.getElementById("list").getAttribute("aria-activedescendant");"""
    clicked = [browser.execute_script(click, x, 20) for x in (20, 40, 80)]
    assert clicked == ["detection-1", "detection-0", None]


def test_a_video_is_played_paused_and_stepped(browser: Browser, served: Served, tmp_path: Path) -> None:
    path = tmp_path / "clip.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 10, (96, 64))
    for number in range(8):
        writer.write(np.full((64, 96, 3), (0, 255, 20 + number), np.uint8))
    writer.release()
    if not path.is_file() or path.stat().st_size < 500:
        pytest.skip("this OpenCV writes no VP8")
    opened(browser, served)
    choose(browser, path)
    eventually(browser, "at('play').innerText === 'Play' && at('list').children.length")  # it came to its end
    begun, (time_s, name) = requests(served), position(browser)
    assert 0.6 <= time_s <= 0.9 and name.startswith("clip.webm at ")
    browser.find_element("id", "back").click()
    eventually(browser, f"parseFloat(at('time').innerText) < {time_s}")
    eventually(browser, f"!document.querySelector('#view-left figcaption').innerText.includes('{time_s:.2f}')")
    assert requests(served) == begun + 1 and position(browser)[0] == pytest.approx(time_s - 0.1, abs=0.02)
    browser.find_element("id", "play").click()
    eventually(browser, "at('play').innerText === 'Play'")
    browser.find_element("id", "stop").click()
    assert not script(browser, "return at('player').checkVisibility()")
    assert not browser.get_log("browser")


def position(browser: Browser) -> tuple[float, str]:
    text, name = script(
        browser, "return [at('time').innerText, document.querySelector('#view-left figcaption').innerText]"
    )
    return float(text.split()[0]), name


def test_the_camera_is_asked_frame_by_frame(browser: Browser, served: Served) -> None:
    opened(browser, served)
    before = requests(served)
    browser.find_element("id", "camera").click()
    eventually(browser, "document.querySelector('#view-left figcaption').innerText === 'camera'")
    end = time.monotonic() + 20
    while requests(served) < before + 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    browser.find_element("id", "play").click()
    eventually(browser, "at('play').innerText === 'Play'")
    browser.find_element("id", "stop").click()
    time.sleep(0.3)
    asked = requests(served)
    time.sleep(0.3)
    assert requests(served) == asked


def test_a_key_is_asked_for_and_a_server_that_is_gone_is_told(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    file = model(tmp_path / "day.onnx", make_card())
    with serving(tmp_path, file, "--api-keys", tmp_path / "keys", "--max-body-mb", 1) as server:
        browser.get(server.address)
        eventually(
            browser, "at('key-form').checkVisibility() && at('key-reason').innerText.includes('expected an API')"
        )
        field = browser.find_element("id", "key")
        field.send_keys("wrong-wrong-wrong\n")
        eventually(browser, "at('key-reason').innerText.includes('not one of this server')")
        field.send_keys(f"{KEY}\n")
        eventually(browser, "at('left').options.length && !at('key-form').checkVisibility()")
        choose(browser, png(tmp_path))
        eventually(browser, "at('list').children.length === 2")
        assert script(
            browser, "return JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie])"
        ) == (json.dumps([{}, {}, ""], separators=(",", ":")))
        browser.refresh()  # the key is gone
        eventually(browser, "at('key-form').checkVisibility()")
        browser.find_element("id", "key-keep").click()
        browser.find_element("id", "key").send_keys(f"{KEY}\n")
        eventually(browser, "at('left').options.length")
        browser.refresh()  # and kept where that was asked for
        eventually(browser, "at('left').options.length && !at('key-form').checkVisibility()")
        large = tmp_path / "large.png"
        large.write_bytes(bytes(6_000_000))
        choose(browser, large)
        eventually(browser, "/at most 1000000 bytes|all 6.0 MB: is it too large/.test(at('error').innerText)")
        assert server.end() == 0
        choose(browser, png(tmp_path, "later.png"))
        eventually(browser, "at('error').innerText.startsWith('The server does not answer')")


def test_one_column_on_a_phone(browser: Browser, served: Served, tmp_path: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        opened(browser, served)
        choose(browser, png(tmp_path))
        eventually(browser, "at('list').children.length === 1")
        compare_with(browser, "night")
        eventually(browser, "at('summary').innerText.startsWith('both')")
        assert script(browser, "return document.documentElement.scrollWidth") == 390
        tops = script(
            browser, "return ['view-left', 'view-right', 'list'].map((x) => at(x).getBoundingClientRect().top)"
        )
        assert tops == sorted(set(tops))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_model_that_is_replaced_shows_its_new_card(browser: Browser, tmp_path: Path) -> None:
    file = model(tmp_path / "day.onnx", make_card())
    with serving(tmp_path, file) as server:
        opened(browser, server)
        choose(browser, png(tmp_path))
        eventually(browser, "at('list').children.length === 2")
        new = make_card(classes=("x", "y", "z"), input_size_hw=(64, 96), threshold=0.7)
        model(tmp_path / "new.onnx", new).replace(file)
        until(lambda: server.model()["reloads"] == 1)
        choose(browser, png(tmp_path))
        eventually(browser, "at('cards').textContent.includes('x, y, z')")
        assert [row[:2] for row in rows(browser)] == [["z", "1.000"]]
        assert server.model()["graph"] in script(browser, "return at('cards').textContent")
    assert not browser.get_log("browser")
