"""The augment section: off unless asked for, refused with a reason where it makes no sense."""

from dataclasses import fields

import pytest

from isodet.strict import ConfigError, build, to_mapping
from trainer.check.augment import NAMES, alone, switched_on
from trainer.config.augment import AugmentConfig
from trainer.config.train import dump_config
from trainer.config_reader import read_config, train_config
from trainer.recipes import make_shapes


def test_every_section_is_off_by_default_and_the_old_keys_are_as_they_were():
    config = AugmentConfig()
    assert switched_on(config) == ["flip", "scale", "color"]
    assert config.closing == {}
    old = {"flip": 0.5, "scale_probability": 1.0, "scale": (0.6, 1.6), "color_probability": 0.8, "brightness": 0.2,
           "contrast": 0.25, "saturation": 0.3, "hue": 0.02, "min_visible": 0.3}  # fmt: skip
    assert {key: getattr(config, key) for key in old} == old
    for field in fields(config):
        section = getattr(config, field.name)
        assert not hasattr(section, "probability") or section.probability == 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"blur": {"probability": 1.5}}, "augment.blur.probability: expected a number from 0 to 1"),
        ({"blur": {"sigma": [2, 1]}}, "augment.blur.sigma: expected [low, high] within 0.1..20"),
        ({"noise": {"sigm": [1, 2]}}, "augment.noise.sigm'; did you mean 'sigma'"),
        ({"jpeg": {"quality": [0, 90]}}, "augment.jpeg.quality"),
        ({"mosaic": {"center": [0, 1]}}, "augment.mosaic.center"),
        ({"mosaic": {"close_epochs": -1}}, "augment.mosaic.close_epochs"),
        ({"mixup": {"alpha": 0}}, "augment.mixup.alpha"),
        ({"crop": {"least": []}}, "augment.crop.least"),
        ({"crop": {"measure": "giou"}}, "augment.crop.measure: expected one of share, iou"),
        ({"copy_paste": {"count": [0, 2]}}, "augment.copy_paste.count"),
        ({"copy_paste": {"sides": [0.5, 0.5]}}, "augment.copy_paste.sides"),
        ({"copy_paste": {"max_cover": 1}}, "augment.copy_paste.max_cover"),
        ({"hard_negatives": {"probability": 0.5}}, "augment.hard_negatives.file: expected the file that `trainer mine"),
        ({"multi_scale": {"multiple": 20}}, "augment.multi_scale.multiple: expected a multiple of 32"),
        ({"trivial": {"strength": 0}}, "augment.trivial.strength"),
        ({"auto": {"policy": [[["equalise", 0.5, 3]]]}}, "unknown operation 'equalise'; did you mean 'equalize'"),
        ({"auto": {"policy": [[["equalize", 0.5, 11]]]}}, "level of equalize: expected a number from 0 to 10"),
        ({"auto": {"policy": []}}, "augment.auto.policy"),
        ({"distort": {"gamma": [0, 1]}}, "augment.distort.gamma"),
        ({"torchvision": [{"A": {}, "B": {}}]}, "augment.torchvision: expected a list of `Name: {arguments}`"),
        ({"albumentations": [{"A": 3}]}, "augment.albumentations: expected a list of `Name: {arguments}`"),
        ({"flip_vertical": 2}, "augment.flip_vertical"),
    ],
)
def test_what_is_refused_is_named(section, said):
    with pytest.raises(ConfigError) as error:
        build(AugmentConfig, section, "augment")
    assert said in str(error.value)


def test_a_config_goes_through_yaml_and_finds_its_files(tmp_path):
    make_shapes(tmp_path / "set", 2, 1)
    path = tmp_path / "set" / "mine.yaml"
    path.write_text(
        "_base_: shapes.yaml\n"
        "augment:\n"
        "  mosaic: {probability: 0.5, close_epochs: 3}\n"
        "  hard_negatives: {probability: 0.2, file: found/negatives.json}\n"
        "  auto: {probability: 0.1, policy: [[[equalize, 0.5, 3], [rotate, 1, 2]]]}\n"
        "  torchvision:\n"
        "    - RandomGrayscale: {p: 0.2}\n"
        "    - RandomEqualize:\n"
    )
    config = read_config(path, ["augment.blur.probability=0.1"])
    assert config.augment.hard_negatives.file == str((tmp_path / "set" / "found" / "negatives.json").resolve())
    assert config.augment.blur.probability == 0.1 and config.augment.scale == (0.8, 1.25)
    assert switched_on(config.augment) == ["hard_negatives", "auto", "mosaic", "blur", "flip", "scale", "color",
                                           "torchvision"]  # fmt: skip
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_config(config))
    assert read_config(again) == config


def test_what_closes_before_it_begins_is_refused(tmp_path):
    make_shapes(tmp_path / "set", 2, 1)
    path = tmp_path / "set" / "shapes.yaml"
    for name in ("mosaic", "mixup"):
        with pytest.raises(ConfigError, match=f"augment.{name}.close_epochs: 10 of 8 epochs leave none with {name}"):
            read_config(path, [f"augment.{name}.probability=0.5", "schedule.epochs=8"])
    config = read_config(path, ["augment.mosaic.probability=0.5", "schedule.epochs=11"])
    assert config.augment.closing == {"mosaic": 10}
    assert train_config(to_mapping(config)) == config


@pytest.mark.parametrize("name", NAMES)
def test_alone_is_alone(name):
    everything = build(AugmentConfig, {
        "torchvision": [{"RandomEqualize": {}}], "albumentations": [{"Blur": {}}], "flip_vertical": 0.5,
        "blur": {"probability": 0.5, "sigma": [3, 4]}, "mosaic": {"probability": 0.5},
        "hard_negatives": {"probability": 0.5, "file": "x.json"},
    })  # fmt: skip
    config = alone(everything, name)
    assert switched_on(config) == [name]
    assert config.blur.sigma == (3, 4) and config.min_visible == everything.min_visible
