"""Reading a training configuration: YAML with `_base_`, `key=value` overrides, a checkpoint's model, custom parts.

Paths in a YAML file are relative to that file; paths on the command line to the working folder. This module is not in
`trainer.config`, because it reads checkpoints and tries custom parts, which need a `TrainConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isodet.strict import ConfigError, build, dotted_keys, merge
from models.config.model import model_config
from runtime.datasets.annotations import DatasetError, read_class_names
from trainer.config.custom import custom_names
from trainer.config.files import read_mapping, read_override
from trainer.config.optim import schedule_mapping, under_preset
from trainer.config.train import TrainConfig


def read_config(path: str | Path, overrides: Sequence[str] = (), resolved: bool = False) -> TrainConfig:
    """Read a YAML config, its `_base_` chain and `key.sub=value` overrides into a `TrainConfig`.

    resolved: the file is a run's config.yaml, which has every key: the checkpoints that it names are not read.
    Raises `ConfigError` naming the file and the key.
    """
    mapping = with_overrides(read_mapping(Path(path)), overrides)
    try:
        if isinstance(mapping.get("init"), str) and not resolved:
            mapping["model"] = _model_of(mapping["init"], mapping.get("model", {}))
        config = train_config(mapping)
        if config.distill is not None and not resolved:
            from trainer.extras.distill import require_teacher  # imports torch, which reading a config need not

            require_teacher(config)
        return config
    except ConfigError as error:
        if error.key is None:  # messages on custom parts and checkpoints begin with the key
            error.key = next((key for key in dotted_keys(TrainConfig) if str(error).startswith(f"{key}: ")), None)
        raise error.of_file(path) from None


def with_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`mapping` with each `key.sub=value` laid on top. `schedule.preset` replaces the keys that the preset sets.

    Raises `ConfigError`.
    """
    merged = dict(mapping)
    for over in map(read_override, overrides):
        merged = merge(under_preset(merged, over), over)
    return merged


def _model_of(checkpoint: str, over: Any) -> Any:
    """The model section of `checkpoint`, with that of the config, `over`, laid on top."""
    from models.checkpoint import CheckpointError, read_checkpoint  # as above
    from trainer.custom import require_installed

    try:
        model = read_checkpoint(checkpoint)["card"].get("model", {})
    except CheckpointError as error:
        raise ConfigError(f"init: {error}") from None
    if not isinstance(over, Mapping):
        return over
    require_installed(model, over, checkpoint)
    if over.get("detector", model.get("detector")) != model.get("detector"):
        raise ConfigError(
            f"model.detector: {checkpoint} is {model.get('detector')}, not {over['detector']}; leave it "
            "out: with init the model is the checkpoint's"
        )
    return merge(model, over)


def train_config(mapping: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from a plain mapping, with the presets of model and schedule filled in.

    Custom parts are loaded and tried, and their arguments completed with their defaults.
    """
    if isinstance(mapping.get("model"), Mapping):
        model = mapping["model"]
        if isinstance(model.get("classes"), str):
            model = {**model, "classes": _class_file(model["classes"])}
        mapping = {**mapping, "model": model_config(model)}
    if isinstance(mapping.get("schedule"), Mapping):
        mapping = {**mapping, "schedule": schedule_mapping(mapping["schedule"])}
    config = build(TrainConfig, mapping)
    if not custom_names(config.model, config.augment.own):
        return replace(config, code=())
    from trainer.custom import try_custom_parts  # torch is needed for them only

    return try_custom_parts(config)


def _class_file(path: str) -> list[str]:
    try:
        return read_class_names(path)
    except DatasetError as error:
        raise ConfigError(f"model.classes: expected a list of names, or a text file of names: {error}") from None


def qat_config(checkpoint: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The training that made a checkpoint, repeated with 8 bits.

    It has a fifth of the epochs, at least 3, and a tenth of the learning rate. It has no auxiliary head, and no teacher
    unless `overrides` name one. Raises `ConfigError`, or `CheckpointError` for a file that is not a checkpoint.
    """
    from models.checkpoint import read_checkpoint  # imports torch, which reading a config need not

    training = dict(read_checkpoint(checkpoint)["card"].get("training") or {})
    if "data" not in training:
        raise ConfigError(
            f"{checkpoint}: it does not say what it was trained on (an imported checkpoint does not); "
            f"name a config: trainer fit CONFIG --qat {checkpoint}"
        )
    optim, schedule = dict(training["optim"]), dict(training["schedule"])
    optim["lr"] *= 0.1
    schedule |= {"epochs": max(3, round(schedule["epochs"] / 5)), "swa_epochs": 0}
    mapping = training | {"optim": optim, "schedule": schedule, "name": f"{training['name']}-qat", "qat": {},
                          "distill": None, "auxiliary": None, "init": str(Path(checkpoint).resolve())}  # fmt: skip
    try:
        return train_config(with_overrides(mapping, overrides))
    except ConfigError as error:
        raise error.of_file(checkpoint, "its training as QAT: ") from None
