"""The training configuration: typed and strict; `trainer.config_reader` reads it from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import yaml

from isodet.errors import ArgumentError
from isodet.strict import ConfigError, require, to_mapping
from models.config.model import ModelConfig
from trainer.config.augment import AugmentConfig
from trainer.config.data import DataConfig
from trainer.config.extras import AuxiliaryConfig, DistillConfig, QatConfig
from trainer.config.log import Tracker, require_trackers
from trainer.config.optim import OptimConfig, ScheduleConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training: the data, the detector, and how it learns.

    data: The pictures.
    model: The detector.
    name: Outputs go to `runs/<name>/`.
    init: A checkpoint, trained or imported, whose weights the training starts from. Keys that `model` leaves out are
        the checkpoint's. Where the classes differ from its own, the prediction layer of classes starts anew.
    qat: Train the checkpoint in `init` on as 8 bits.
    distill: Learn from a bigger detector, too.
    auxiliary: A second head, in training only.
    seed: Seed of weights, order and augmentation.
    batch_size: Images per step of each process. auto: the largest power of two, up to 64, that the memory holds. On a
        GPU it is tried, up to 85 % of free memory (not yet run on one); on a CPU the tensors of one step are counted,
        up to half of the available memory. The run's config.yaml has the number.
    augment: What may happen to a training picture.
    optim: The optimizer.
    schedule: Epochs and the learning rate over them.
    amp: Mixed precision. auto: bfloat16 where the device computes it natively, else float16 on a GPU, else off.
    channels_last: Keep the network's tensors as NHWC in memory.
    compile: torch.compile on the network in training: minutes at the start, faster steps after that.
    deterministic: Only kernels that repeat their results bit for bit; slower on a GPU.
    device: auto, cpu, cuda or cuda:N.
    threads: CPU threads of the network. auto: on a CPU the first steps try all cores and fewer, and the fastest number
        is taken; it is tried again where steps become half as fast, because other programs came, and when a core is
        free again. All cores with deterministic, in several processes, and on a GPU; the environment variable
        OMP_NUM_THREADS has precedence.
    val_interval: Validate every so many epochs; the last one always.
    val_loss: Compute the loss on the validation pictures, too, in one more pass over them.
    code: Folders to search for the modules of your own parts, after the installed packages. Without this key: the
        folder of the file.
    checkpoint_minutes: Write last.pt also within an epoch, when it is so many minutes old; 0: only after epochs.
    checkpoint_steps: Write last.pt also after so many optimizer steps; 0: do not count steps.
    log: Record at Weights & Biases or MLflow, too, besides metrics.csv and TensorBoard (docs/training.md).
    """

    data: DataConfig
    model: ModelConfig
    name: str = "run"
    init: str | None = None
    qat: QatConfig | None = None
    distill: DistillConfig | None = None
    auxiliary: AuxiliaryConfig | None = None
    seed: int = 0
    batch_size: int | Literal["auto"] = 16
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    val_interval: int = 1
    val_loss: bool = False
    code: tuple[str, ...] = ()
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0
    log: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        if self.qat is not None and self.init is None:
            raise ConfigError("qat: it starts from a trained detector; set init: its best.pt, or fit --qat best.pt")
        automatic, quantized = self.batch_size == "auto", self.qat is not None
        if self.distill is not None:
            self.distill.require_fitting(automatic, quantized)
        if self.auxiliary is not None:
            self.auxiliary.require_fitting(self.model, automatic, quantized)
        require(self.batch_size == "auto" or self.batch_size >= 1, "batch_size", "auto, or 1 or more", self.batch_size)
        require(self.threads == "auto" or self.threads >= 1, "threads", "auto, or 1 or more", self.threads)
        require(self.val_interval >= 1, "val_interval", "1 or more", self.val_interval)
        require(self.checkpoint_minutes >= 0, "checkpoint_minutes", "0 or more", self.checkpoint_minutes)
        require_trackers(self.log)
        require(self.checkpoint_steps >= 0, "checkpoint_steps", "0 or more", self.checkpoint_steps)
        self._require_statistics()
        self._require_tiles()
        require(
            bool(self.name) and not set(self.name) & set('/\\:*?"<>|\0') and self.name not in (".", "..")
            and len(self.name.encode(errors="replace")) <= 200,
            "name", "a folder name of at most 200 bytes without / \\ : * ? \" < > |", self.name,
        )  # fmt: skip
        require(0 <= self.seed < 1 << 32, "seed", "a whole number from 0 to 2**32 - 1", self.seed)
        for section, last in self.augment.closing.items():
            if last >= self.schedule.epochs:
                raise ConfigError(
                    f"augment.{section}.close_epochs: {last} of {self.schedule.epochs} epochs leave none "
                    f"with {section}; lower it, or set augment.{section}.probability to 0"
                )
        if self.schedule.swa_epochs and self.optim.ema:
            raise ConfigError("schedule.swa_epochs: optim.ema averages the weights already; set one of them to 0")
        if self.optim.stage_decay != 1 and self.model.backbone.name.startswith("timm:"):
            raise ConfigError(
                "optim.stage_decay: the stages of a timm network are not known; set it to 1 and use optim.backbone_lr"
            )

    def _require_statistics(self) -> None:
        model, last = self.model, self.model.neck.levels[1]
        size_hw = model.input_size_hw if model.resize.rule == "letterbox" else (model.resize.short, model.resize.short)
        one_cell = self.batch_size == 1 and smallest_level(size_hw, last) == 1
        if one_cell and model.head.norm in ("bn", "sepbn"):
            raise ConfigError(
                f"batch_size: the statistics of a BatchNorm (model.head.norm: {model.head.norm}) need two cells, and a "
                f"batch has one on level {last}; use batch_size: 2 or more, model.head.norm: gn, or fewer levels"
            )

    def _require_tiles(self) -> None:
        try:
            _ = self.tile_hw
        except ArgumentError as error:
            reason = str(error).removeprefix("Tiles.")
            raise ConfigError(f"data.tiles.{reason}; make tiles larger, or model.neck.levels fewer") from None

    @property
    def tile_hw(self) -> tuple[int, int]:
        """Height and width of the tiles of `data.tiles`, in pixels of the pictures."""
        input_hw, stride = self.model.input_size_hw, 2 ** self.model.neck.levels[1]
        return input_hw if self.data.tiles is None else self.data.tiles.rule.size_hw(input_hw, stride)

    @property
    def images_per_batch(self) -> int:
        """`batch_size` as a number: `fit` replaces auto before anything reads this."""
        if self.batch_size == "auto":
            raise ConfigError("batch_size: auto is decided when training starts; give a number here")
        return self.batch_size


def smallest_level(size_hw: tuple[int, int], last: int) -> int:
    """The cells of the last level for an image of this size, from which a BatchNorm there takes its statistics."""
    return math.prod(-(-side // 2**last) for side in size_hw)


def dump_config(config: TrainConfig) -> str:
    """The resolved config as YAML; reading it back gives an equal `TrainConfig`."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
