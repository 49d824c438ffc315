"""ultralytics' yolo11n and yolo26n, trained and run by its own code and defaults, judged by isodet's evaluation.

ultralytics is never a dependency: this file is used only where somebody installed it.

- Pictures and boxes are those that isodet reads for its own training. Regions that isodet ignores are left out: YOLO's
  labels know none.
- All goes by its defaults but for the length, the batch, the seed and the mirroring, which are those of the config. Its
  validation chooses nothing: the weights of the last epoch are judged, averaged as it averages them.
- Its own `predict` looks at the whole pictures, letterboxed its way, and answers in their pixels.
- It answers from a score of 0.001 on, as in its own validation; isodet and torchvision here answer from 0.05 on. All
  give at most 100 detections a picture.
- Nothing is downloaded or sent, and the settings of the user are left alone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runtime import Detections
from runtime.datasets.orientation import oriented
from runtime.evaluation.evaluate import Evaluation, evaluate_detections
from runtime.images.image import read_image
from trainer.config.train import TrainConfig
from trainer.data.datasets import train_data, val_data
from trainer.prepare.writers import write_yolo

LOWEST_SCORE, DETECTIONS = 0.001, 100


def train_yolo(network: str, config: TrainConfig, out: Path, weights: Path | None = None) -> Evaluation:
    """Train `network` on `config`'s data and judge it; `out` keeps the data as YOLO reads it, weights and settings.

    network: as yolo11n. weights: a file of ultralytics to start from, such as yolo11n.pt; None: from scratch.
    """
    yolo = offline(out)
    model = yolo(f"{network}.yaml" if weights is None else str(weights))
    model.train(
        data=str(yolo_set(config, out / "yolo")), epochs=config.schedule.epochs, imgsz=max(config.model.input_size_hw),
        batch=config.images_per_batch, pretrained=weights is not None, device="cpu", workers=0, seed=config.seed,
        fliplr=config.augment.flip,
        val=False, plots=False, project=str((out / "yolo-runs").resolve()), name=config.name, exist_ok=True,
        verbose=False,
    )  # fmt: skip
    return judge(yolo(str(out / "yolo-runs" / config.name / "weights" / "last.pt")), config)


def offline(out: Path) -> Any:
    """ultralytics' class YOLO, with settings in `out`, on PyTorch's number of threads, and without the network."""
    folder = (out / "settings").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    import torch
    from matplotlib.font_manager import findfont
    from ultralytics import YOLO, settings
    from ultralytics.utils import USER_CONFIG_DIR, torch_utils

    # On a CPU it sets the number of threads to all cores but one, whatever it was.
    torch_utils.NUM_THREADS = torch.get_num_threads()
    settings.update({name: False for name, value in settings.items() if value is True})  # what sends and logs
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):  # it downloads these for its plots
        if not (font := Path(USER_CONFIG_DIR) / name).is_file():
            shutil.copyfile(findfont("DejaVu Sans"), font)
    return YOLO


def yolo_set(config: TrainConfig, folder: Path) -> Path:
    """The data.yaml of `config`'s pictures and boxes in `folder`; one that is there is kept."""
    path = folder.resolve() / "data.yaml"
    if path.is_file():
        return path
    shutil.rmtree(folder, ignore_errors=True)  # cut short
    for split, dataset in (("train", train_data(config, repeat=False)), ("val", val_data(config))):
        images = folder / split / "images"
        images.mkdir(parents=True)
        names = [f"{number:06}{record.path.suffix.lower()}" for number, record in enumerate(dataset.records)]
        for record, name in zip(dataset.records, names, strict=True):
            shutil.copyfile(record.path, images / name)
        write_yolo(dataset, names, folder / split, split, with_pictures=True)
    content = {
        "path": str(folder.resolve()), "train": "train/images", "val": "val/images",
        "names": dict(enumerate(config.model.classes)),
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def judge(model: Any, config: TrainConfig) -> Evaluation:
    """The evaluation of what a YOLO finds in `config`'s validation pictures.

    One picture at a time: so each is padded to a multiple of the stride only, as in the validation of ultralytics.
    """
    dataset = val_data(config)
    records, detections = [], {}
    for record in dataset.records:
        image = read_image(record.path)
        (found,) = model.predict(
            image, imgsz=max(config.model.input_size_hw), conf=LOWEST_SCORE, max_det=DETECTIONS, device="cpu",
            verbose=False,
        )  # fmt: skip
        rows = np.asarray(found.boxes.data, np.float32).reshape(-1, 6)  # xyxy in pixels of the picture, score, label
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        detections[record.id] = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32), dataset.class_names)
        records.append(oriented(record, (image.shape[0], image.shape[1])))
    return evaluate_detections(detections, replace(dataset, records=tuple(records)))
