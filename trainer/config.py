"""The training configuration: YAML with `_base_`, `key=value` overrides, typed and strict.

Paths in a YAML file are relative to that file; paths given on the command line to the working folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from models.config import ModelConfig, model_config
from models.typed import ConfigError, build, merge, require, to_mapping
from trainer.augment_config import AugmentConfig


@dataclass(frozen=True)
class SplitConfig:
    annotations: str
    """COCO JSON file."""
    images: str
    """Folder that `file_name` is relative to."""


@dataclass(frozen=True)
class DataConfig:
    train: SplitConfig
    val: SplitConfig
    workers: int | Literal["auto"] = "auto"
    """Loader processes. auto: none on a CPU (they would fight over its cores), else up to 8."""

    def __post_init__(self) -> None:
        require(self.workers == "auto" or self.workers >= 0, "workers", "auto, or 0 and more", self.workers)


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    """sgd only."""
    weight_decay: float = 1e-4
    """Never on norms and biases."""
    clip_norm: float = 10.0
    """Largest gradient norm; 0 = no clipping."""
    accumulate: int = 1
    """Batches per optimiser step."""
    ema: float = 0.0
    """Decay of the averaged weights that are validated and saved as best; 0 = none."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "a positive number", self.lr)
        require(0 <= self.momentum < 1, "momentum", "0 up to 1", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require(self.clip_norm >= 0, "clip_norm", "0 or more", self.clip_norm)
        require(self.accumulate >= 1, "accumulate", "1 or more", self.accumulate)
        require(0 <= self.ema < 1, "ema", "0 up to 1", self.ema)


@dataclass(frozen=True)
class ScheduleConfig:
    epochs: int = 12
    kind: Literal["cosine", "step", "constant"] = "cosine"
    warmup_steps: int = 500
    """Optimiser steps of linear warm-up; never more than a tenth of the run."""
    milestones: tuple[float, ...] = (0.667, 0.917)
    """step: parts of the run after which the rate is multiplied by `gamma` (8 and 11 of 12 epochs)."""
    gamma: float = 0.1
    final: float = 0.01
    """cosine: the last rate over the first."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(
            list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
            "milestones", "rising parts of the run between 0 and 1", self.milestones,
        )  # fmt: skip
        require(0 < self.gamma <= 1, "gamma", "above 0, at most 1", self.gamma)
        require(0 <= self.final <= 1, "final", "0 to 1", self.final)


@dataclass(frozen=True)
class TrainConfig:
    data: DataConfig
    model: ModelConfig
    name: str = "run"
    """Outputs go to `runs/<name>/`."""
    init: str | None = None
    """A checkpoint, trained or imported, whose weights the training starts from; what `model` does not say is that
    checkpoint's. With other classes than its own, the prediction layer of classes starts anew."""
    seed: int = 0
    batch_size: int = 16
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """auto: bfloat16 where the device computes it natively, else float16 on a GPU, else off."""
    channels_last: bool = True
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    val_interval: int = 1
    """Validate every so many epochs; the last one always."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)
        require(self.val_interval >= 1, "val_interval", "1 or more", self.val_interval)
        require(
            bool(self.name) and not set(self.name) & set('/\\:*?"<>|') and self.name not in (".", ".."),
            "name", "a folder name without / \\ : * ? \" < > |", self.name,
        )  # fmt: skip
        for section, last in self.augment.closing.items():
            if last >= self.schedule.epochs:
                raise ConfigError(f"augment.{section}.close_epochs: {last} of {self.schedule.epochs} epochs leave none "
                                  f"with {section}; lower it, or set augment.{section}.probability to 0")  # fmt: skip


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_PATHS = (("data", "train", "annotations"), ("data", "train", "images"),
          ("data", "val", "annotations"), ("data", "val", "images"), ("init",),
          ("augment", "hard_negatives", "file"))  # fmt: skip


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: `no` and `off` are words, `1e-3` is a number; and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_config(path: str | Path, overrides: Sequence[str] = (), resolved: bool = False) -> TrainConfig:
    """Read a YAML config, its `_base_` chain and `key.sub=value` overrides into a `TrainConfig`.

    resolved: a run's own config.yaml, which says everything, so that the checkpoint in `init` is not looked at.
    Raises `ConfigError` naming the file and the key.
    """
    mapping = _read_mapping(Path(path), seen=())
    for text in overrides:
        mapping = merge(mapping, _override(text))
    try:
        if isinstance(mapping.get("init"), str) and not resolved:
            mapping["model"] = _model_of(mapping["init"], mapping.get("model", {}))
        return train_config(mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _model_of(checkpoint: str, over: Any) -> Any:
    """The model section of `checkpoint` with what the config says of its own laid on top."""
    from models.checkpoint import CheckpointError, read_checkpoint  # imports torch, which reading a config need not

    try:
        model = read_checkpoint(checkpoint)["card"].get("model", {})
    except CheckpointError as error:
        raise ConfigError(f"init: {error}") from None
    if not isinstance(over, Mapping):
        return over
    if over.get("detector", model.get("detector")) != model.get("detector"):
        raise ConfigError(f"model.detector: {checkpoint} is {model.get('detector')}, not {over['detector']}; leave it "
                          "out: with init the model is the checkpoint's")  # fmt: skip
    return merge(model, over)


def train_config(mapping: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from a plain mapping, with the model's preset filled in."""
    if isinstance(mapping.get("model"), Mapping):
        mapping = {**mapping, "model": model_config(mapping["model"])}
    return build(TrainConfig, mapping)


def dump_config(config: TrainConfig) -> str:
    """The resolved config as YAML; reading it back gives an equal `TrainConfig`."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _read_mapping(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: _base_ comes back to itself through {' -> '.join(p.name for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        asked = f" (named as _base_ by {seen[-1]})" if seen else ""
        raise ConfigError(f"{path}: cannot read this config{asked}: {error.strerror}") from None
    try:
        mapping = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a YAML mapping of keys, got {type(mapping).__name__}")
    for keys in _PATHS:  # relative to the file they are written in, before files are merged
        holder: Any = mapping
        for key in keys[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get(keys[-1]), str):
            holder[keys[-1]] = str((path.parent / Path(holder[keys[-1]]).expanduser()).resolve())
    bases = mapping.pop("_base_", None)
    if bases is None:
        return mapping
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{path}: _base_: expected a path or a list of paths, got {bases!r}")
    below: dict[str, Any] = {}
    for base in bases:
        below = merge(below, _read_mapping(path.parent / base, (*seen, path)))
    return merge(below, mapping)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value, for example optim.lr=0.002")
    keys = key.strip().split(".")
    try:
        parsed = _load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None
    if tuple(keys) in _PATHS and isinstance(parsed, str):
        parsed = str(Path(parsed).expanduser().resolve())
    for k in reversed(keys):
        parsed = {k: parsed}
    return parsed
