"""`trainer fit --qat`: an 8-bit detector out of a trained one, which resumes, exports, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import export
from isodet.strict import ConfigError
from models.checkpoint import CheckpointError, build_detector, read_checkpoint
from models.quant import QuantDetector
from runtime import Detector, read_card
from tests.at_fault import raises
from tests.trainer.interrupted import go_on, stop_before_epoch
from tests.trainer.tiny import alike
from trainer.__main__ import main
from trainer.config_reader import qat_config, read_config
from trainer.extras.qat import last_moving_epoch
from trainer.loop import fit

SHORT = ["schedule.epochs=2", "qat.images=16", "amp=off"]


@pytest.fixture(scope="module")
def quantized(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = qat_config(shapes_run / "best.pt", [*SHORT, "val_interval=1"])
    return fit(config, tmp_path_factory.mktemp("qat"), quiet=True).run


def ranges(path: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in read_checkpoint(path)["model"].items() if key.startswith("graph.fake_quants.")}


def test_it_is_the_training_again_a_fifth_as_long_at_a_tenth_of_the_rate(shapes_run):
    own = read_checkpoint(shapes_run / "best.pt")["card"]["training"]
    config = qat_config(shapes_run / "best.pt")
    assert config.schedule.epochs == max(3, round(own["schedule"]["epochs"] / 5))
    assert config.optim.lr == own["optim"]["lr"] * 0.1
    assert config.qat is not None and config.name == "shapes-qat" and config.init == str(shapes_run / "best.pt")
    assert qat_config(shapes_run / "best.pt", ["qat.freeze=1", "optim.lr=0.5"]).optim.lr == 0.5


def test_the_checkpoint_says_what_it_is_and_keeps_its_map(shapes_run, quantized):
    card = read_card(quantized / "best.pt")
    assert card.precision == "int8" and card.quantization["kind"] == "qat" and card.quantization["images"] == 16
    assert isinstance(build_detector(quantized / "best.pt")[0], QuantDetector)
    before, after = (read_card(run / "best.pt").metrics["map"] for run in (shapes_run, quantized))
    # Wrong ranges cost tens of points; three are what two short epochs may cost, whose weights differ by processor.
    assert before > 20 and after > before - 3, (before, after)
    assert "qat:" in (quantized / "config.yaml").read_text()
    with raises(CheckpointError, path=quantized / "best.pt"):
        fit(qat_config(quantized / "best.pt", SHORT), quantized.parent, quiet=True)


def test_it_exports_and_the_file_runs(quantized, tmp_path):
    written = export.to_onnx(quantized / "best.pt", tmp_path / "best.onnx")
    assert written.card.precision == "int8"
    assert written.verification is not None and written.verification.passed
    assert Detector(written.path).card.quantization["kind"] == "qat"


def test_ranges_follow_in_the_first_epoch_and_stay_in_the_second(shapes_run, tmp_path):
    keys = (["schedule.epochs=1", "qat.freeze=0"], ["qat.freeze=0"], [])
    configs = [qat_config(shapes_run / "best.pt", [*SHORT, "optim.ema=0", *more]) for more in keys]
    assert last_moving_epoch(configs[-1]) == 1
    first, never, moved = (ranges(fit(config, tmp_path, quiet=True).run / "last.pt") for config in configs)
    assert first and all(torch.equal(value, never[key]) for key, value in first.items())
    # Nearly all: the range of a tensor that is zero, or whose largest value comes in every epoch, has no way to go.
    assert sum(not torch.equal(value, moved[key]) for key, value in first.items()) > 0.9 * len(first)


def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(shapes_run, quantized, tmp_path):
    stop_before_epoch(2, qat_config(shapes_run / "best.pt", [*SHORT, "val_interval=1"]), tmp_path)
    assert alike(go_on(tmp_path), quantized)


def test_the_command_and_what_it_refuses(shapes_run, tmp_path, capsys):
    best = shapes_run / "best.pt"
    config = read_checkpoint(best)["card"]["training"]["data"]["train"]["annotations"]
    recipe = Path(config).parent / "shapes.yaml"
    keys = ["schedule.epochs=1", "qat.images=4", "qat.float_layers=[backbone.conv1]"]
    assert main(["fit", str(recipe), "--qat", str(best), "--runs", str(tmp_path), "--quiet", *keys]) == 0
    card = read_card(tmp_path / "shapes" / "best.pt")
    assert card.quantization["float_layers"] == ["backbone.conv1"]
    capsys.readouterr()
    assert main(["fit", "--qat", str(best), "qat.float_layers=[backbone.conv0]", "--runs", str(tmp_path)]) == 1
    assert "backbone.conv0 is no convolution" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="qat: it starts from a trained detector"):
        read_config(recipe, ["qat={}"])
    with pytest.raises(SystemExit):
        main(["fit", "--resume", "--qat", str(best)])
