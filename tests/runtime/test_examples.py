"""Every example is run, with a video file or a folder for a camera."""

from __future__ import annotations

import doctest
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pytest import CaptureFixture, MonkeyPatch

import runtime
from isodet.field_docs import field_docs
from runtime.images.image import write_image
from runtime.streams.open import open_source
from tests.runtime.cameras import video
from tests.runtime.conftest import make_card, pixel_detector

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> str:
    return str(onnx_file())


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Twelve frames in which the tiny model finds two ants each."""
    return str(video(tmp_path / "clip.avi", [np.full((64, 96, 3), (0, 250, 30), np.uint8)] * 12))


@pytest.fixture
def run(monkeypatch: MonkeyPatch) -> Callable[..., None]:
    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_every_example_is_here() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, f"{path.name} is not run"
    assert len((EXAMPLES / "webcam.py").read_text().splitlines()) <= 20


def test_webcam(run: Callable[..., None], model: str, clip: str, monkeypatch: MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: ord("q") if len(shown) == 5 else -1)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    run("webcam.py", model, clip)
    assert len(shown) == 5 and len(np.unique(shown[0].reshape(-1, 3), axis=0)) > 5  # boxes and letters


def test_sixteen_cameras(
    run: Callable[..., None], model: str, clip: str, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    for i in range(3):
        write_image(tmp_path / "photos" / f"{i}.png", np.full((50, 40, 3), (1, 200, 9), np.uint8))
    run("cameras.py", model, *[clip] * 15, str(tmp_path / "photos"), "--report", "0.001")
    told = capsys.readouterr().out.splitlines()
    final = told[-17:]
    assert final[-1] == f"{15 * 12 + 3} frames" and len(told) > 17
    assert final[:15] == [f"{clip}: ended, 12 frames, 0 dropped; 24 ant"] * 15
    assert final[15].endswith("photos: ended, 3 frames, 0 dropped; 6 bee")


def test_coroutines(run: Callable[..., None], model: str, clip: str, capsys: CaptureFixture[str]) -> None:
    run("coroutines.py", model, clip, clip)
    told = capsys.readouterr().out
    assert told.count(f"{clip}: 24 objects in 12 frames") == 2 and "24 frames in " in told


def test_tracking(run: Callable[..., None], model: str, clip: str, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    pytest.importorskip("supervision", reason="supervision, of the extra track, is not installed")
    pytest.importorskip("trackers", reason="trackers, of the extra track, is not installed")
    out = tmp_path / "counted.mp4"
    run("tracking.py", model, clip, str(out))
    assert capsys.readouterr().out == "1 objects: ['ant']\n"
    assert len(list(open_source(out))) == 12


def test_serving(model: str, monkeypatch: MonkeyPatch) -> None:
    for package in ("fastapi", "httpx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the example of an HTTP endpoint is not run")
    from fastapi.testclient import TestClient

    monkeypatch.setenv("ISODET_MODEL", model)
    app = runpy.run_path(str(EXAMPLES / "serve.py"), run_name="serve.py")["app"]
    picture = cv2.imencode(".png", np.full((64, 96, 3), (2, 255, 30), np.uint8))[1].tobytes()
    with TestClient(app) as client:
        found = client.post("/detect", content=picture).json()
        assert [d["name"] for d in found] == ["cat", "cat"] and found[0]["box_xyxy"] == [0, 0, 60, 60]
        assert len(client.post("/detect", params={"threshold": 0.8}, content=picture).json()) == 1
        cut = client.post("/detect", content=picture[: len(picture) // 2])
        assert cut.status_code == 415 and "truncated" in cut.json()["detail"]
        assert client.post("/detect", content=b"").status_code == 415
        assert client.post("/detect", params={"threshold": 2}, content=picture).status_code == 422
        assert client.post("/detect", content=bytes(20_000_001)).status_code == 413


# From here on: the examples in docstrings
@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A folder with a model, a picture of a car, and a video of six frames of it."""
    card = make_card(classes=("person", "car", "bus"))
    (tmp_path / "best.onnx").write_bytes(pixel_detector(card).SerializeToString())
    frame = np.full((32, 48, 3), (1, 250, 30), np.uint8)
    write_image(tmp_path / "street.png", frame)
    video(tmp_path / "street.avi", [frame] * 6)
    return tmp_path


@pytest.mark.parametrize("name", ["BackendOptions", "Batcher", "Detections", "Detector", "StreamOptions", "Tiles"])
def test_the_examples_of_docstrings(name: str, street: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(street)
    names = {name: getattr(runtime, name) for name in runtime.__all__}
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(names[name], name, globs=names):
        runner.run(example, out=told.append)
    assert runner.tries >= 2 and not runner.failures, "".join(told)


@pytest.mark.parametrize("options", [runtime.BackendOptions, runtime.StreamOptions, runtime.Detections, runtime.Tiles])
def test_every_field_is_explained_where_help_shows_it(options: type) -> None:
    documented = field_docs(options)
    assert set(documented) == set(options.__dataclass_fields__) and all(documented.values())
