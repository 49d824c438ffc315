"""Heads from features to detections, losses and gradients, with the importers' conventions, against the peers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isodet.strict import merge
from models.assigners import assign
from models.config.model import model_config
from models.deploy.graph import Deploy
from models.detector import Detector, Raw
from models.importers import mmdet, torchvision
from models.loss import detection_loss
from tests.models.small import close

MMDET = {"head_mmdet_atss": "atss", "head_mmdet_retinanet": "retinanet",
         "head_mmdet_fcos_plain": "fcos", "head_mmdet_fcos_improved": "fcos-improved"}  # fmt: skip
TORCHVISION = {
    "head_torchvision_retinanet_v1": "retinanet_resnet50_fpn",
    "head_torchvision_retinanet_v2": "retinanet_resnet50_fpn_v2",
    "head_torchvision_fcos": "fcos_resnet50_fpn",
}
FILES = {**MMDET, **TORCHVISION}


def detector_of(data: dict, file: str, cfg: str = "A") -> Detector:
    """A detector whose head has the reference's weights; its backbone and neck are not used."""
    architecture = FILES[file]
    rules = mmdet.conventions(architecture) if file in MMDET else torchvision.conventions(architecture)
    names = "scorethr_nmspre_nmsiou_maxper" if file in MMDET else "scorethr_topk_nms_maxdet"
    threshold, level, nms, most = data[f"cfg_{cfg}_{names}"].tolist()
    size = data["batch_input_hw" if file in MMDET else "batch_hw"].tolist()
    config = model_config(merge(rules, {
        "classes": list("abcde"), "input_size_hw": size, "neck": {"channels": 16}, "backbone": {"width": 0.25},
        "postprocess": {"score_threshold": threshold, "level_candidates": int(level), "nms_iou": min(nms, 1.0),
                        "candidates": 3840, "detections": min(int(most), 3840)},
    }))  # fmt: skip
    detector = Detector(config).eval()
    state = {"scales": torch.ones(5)}
    for key, value in data.items():
        if not key.startswith("sd/"):
            continue
        key = key.removeprefix("sd/")
        if key.startswith("scales."):
            state["scales"][int(key.split(".")[1])] = float(value)
        else:
            state[our_name(file, key)] = torch.from_numpy(value)
    detector.head.load_state_dict(state)
    for module in detector.head.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 4  # what the reference was made with; ours divides 16 channels by 2
    return detector


def our_name(file: str, key: str) -> str:
    """A head parameter's name in `Head`."""
    if file in MMDET:
        name = mmdet.renamed(f"bbox_head.{key}", FILES[file].partition("-")[0])
    else:
        name = torchvision.renamed(key, fcos=file.endswith("fcos"))
    assert name.startswith("head."), name
    return name.removeprefix("head.")


def features_of(data: dict) -> list[Tensor]:
    return [torch.from_numpy(data[f"feat_l{level}"]) for level in range(5)]


def their_outputs(data: dict, file: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Logits, box outputs after their activation, quality: [2, N, k] each."""
    if file in TORCHVISION:
        return data["out/cls_logits"], data["out/bbox_regression"], data.get("out/bbox_ctrness")

    def flat(name: str, channels: int) -> np.ndarray:
        levels = [data[f"out_eval_{name}_l{level}"] for level in range(5)]
        return np.concatenate([x.transpose(0, 2, 3, 1).reshape(2, -1, channels) for x in levels], axis=1)

    return flat("cls", 5), flat("bbox", 4), flat("ctr", 1) if "out_eval_ctr_l0" in data else None


@pytest.mark.parametrize("file", FILES)
def test_outputs(golden, file):
    data = golden(file)
    detector = detector_of(data, file)
    with torch.no_grad():
        logits, boxes, quality = detector.head(features_of(data))
    their_logits, their_boxes, their_quality = their_outputs(data, file)
    close(logits, their_logits)
    assert (quality is None) == (their_quality is None)
    if quality is not None:
        close(quality[..., None], their_quality)
    if detector.config.box.activation == "relu":
        boxes = boxes.relu() * (detector.priors().strides[:, None] if file in MMDET else 1)
    elif detector.config.box.unit == "pixel":
        boxes = boxes.exp()
    close(boxes, their_boxes)


@pytest.mark.parametrize("cfg", ["A", "B"])
@pytest.mark.parametrize("file", FILES)
def test_candidates_and_detections(golden, file, cfg):
    data = golden(file)
    detector = detector_of(data, file, cfg)
    deploy = Deploy(detector).eval()
    boxes_name = "bboxes" if file in MMDET else "boxes"
    with torch.no_grad():
        raw = Raw(*detector.head(features_of(data)))
        boxes, scores, labels = deploy.candidates(raw)
    for i in (0, 1):
        # An image that is smaller than the batch is clipped to its own size.
        height, width = data[f"img{i}_img_shape_hw" if file in MMDET else f"img{i}_size_hw"].tolist()
        own = boxes[i].minimum(torch.tensor([width, height, width, height]).float())
        compared = 0
        prefix = f"img{i}_prenms_{cfg}" if file in MMDET else f"img{i}_det_prenms_{cfg}"
        if f"{prefix}_scores" in data:
            post = detector.config.postprocess
            found = scores[i] > (0 if post.threshold_on == "class" else post.score_threshold)
            if post.empty_boxes == "drop":
                found &= (own[:, 2:] > own[:, :2]).all(dim=-1)
            ours = (own[found], scores[i][found], labels[i][found])
            theirs = tuple(data[f"{prefix}_{name}"] for name in (boxes_name, "scores", "labels"))
            same_set(ours, theirs)
            compared += 1
        count, kept, kept_scores, kept_labels = deploy.detections(own[None], scores[i : i + 1], labels[i : i + 1])
        prefix, n = f"img{i}_det_{cfg}", int(count)
        assert n == len(data[f"{prefix}_scores"]) > 0
        close(kept_scores[0, :n], data[f"{prefix}_scores"])
        close(kept[0, :n], data[f"{prefix}_{boxes_name}"], atol=1e-2)
        np.testing.assert_array_equal(kept_labels[0, :n], data[f"{prefix}_labels"])
        assert compared or file in TORCHVISION


def same_set(ours: tuple[Tensor, ...], theirs: tuple[np.ndarray, ...]) -> None:
    """The same boxes, scores and labels, in whichever order: scores may differ in their last bits, so it is no key."""
    mine, their = (np.column_stack([np.asarray(x, np.float64) for x in (*one[1:], one[0])]) for one in (ours, theirs))
    assert mine.shape == their.shape and len(mine) > 0
    partner = np.abs(mine[:, None, :] - their).max(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.sort(partner), np.arange(len(their)))
    their = their[partner]
    np.testing.assert_array_equal(mine[:, 1], their[:, 1])
    np.testing.assert_allclose(mine[:, 0], their[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mine[:, 2:], their[:, 2:], rtol=1e-4, atol=1e-2)


def ground_truth(data: dict, boxes_name: str, empty: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """Boxes [2, G, 4] and labels [2, G] with -1 as padding."""
    G = max(len(data[f"img{i}_gt_labels"]) for i in (0, 1))
    boxes, labels = torch.zeros(2, G, 4), torch.full((2, G), -1)
    for i in (0, 1):
        count = 0 if empty[i] else len(data[f"img{i}_gt_labels"])
        boxes[i, :count] = torch.from_numpy(data[f"img{i}_gt_{boxes_name}"])[:count]
        labels[i, :count] = torch.from_numpy(data[f"img{i}_gt_labels"])[:count]
    return boxes, labels


def training_of(
    data: dict, file: str, empty: tuple[int, int] = (0, 0)
) -> tuple[Detector, list[Tensor], Tensor, Tensor]:
    """Detector, features that want gradients, boxes, labels."""
    features = [x.clone().requires_grad_() for x in features_of(data)]
    return detector_of(data, file), features, *ground_truth(data, "bboxes" if file in MMDET else "boxes", empty)


def check_gradients(data: dict, file: str, detector: Detector, features: list[Tensor]) -> None:
    """Gradients of a total that was run backward, on features and on the parameters that the file has."""
    assert features[0].grad is not None
    close(features[0].grad[1], data["grad_feat_l0"])
    for level in range(1, 5):
        close(features[level].grad, data[f"grad_feat_l{level}"])
    parameters, compared = dict(detector.head.named_parameters()), 0
    for key in (key.removeprefix("grad/") for key in data if key.startswith("grad/")):
        if key.startswith("scales."):
            close(detector.head.scales.grad[int(key.split(".")[1])], data[f"grad/{key}"])
        else:
            close(parameters[our_name(file, key)].grad, data[f"grad/{key}"])
        compared += 1
    assert compared >= 5 or file in TORCHVISION


@pytest.mark.parametrize("case, empty", [("loss", (0, 0)), ("loss_img1_empty", (0, 1)), ("loss_both_empty", (1, 1))])
@pytest.mark.parametrize("file", MMDET)
def test_losses_and_gradients_of_mmdetection(golden, file, case, empty):
    """Image 1 is smaller than the batch, which matters to ATSS and RetinaNet."""
    data = golden(file)
    detector, features, boxes, labels = training_of(data, file, empty)
    sizes = torch.from_numpy(np.stack([data[f"img{i}_pad_shape_hw"] for i in (0, 1)]))
    losses = detection_loss(detector.config, Raw(*detector.head(features)), detector.priors(), boxes, labels, sizes)
    close(losses.cls, data[f"{case}/loss_cls"])
    close(losses.box, data[f"{case}/loss_bbox"])
    close(losses.quality, data.get(f"{case}/loss_centerness", np.zeros(())))
    if case == "loss":
        close(losses.total, data["loss/total"])
        losses.total.backward()
        check_gradients(data, file, detector, features)
    if case == "loss_both_empty":
        assert losses.box == 0 and losses.quality == 0


@pytest.mark.parametrize("file", TORCHVISION)
def test_matching_losses_and_gradients_of_torchvision(golden, file):
    data = golden(file)
    detector, features, boxes, labels = training_of(data, file)
    matched = assign(detector.config.assign, detector.priors(), boxes, labels >= 0)
    for i in (0, 1):
        np.testing.assert_array_equal(matched[i], data[f"img{i}_matched_idxs"])
    losses = detection_loss(detector.config, Raw(*detector.head(features)), detector.priors(), boxes, labels)
    close(losses.cls, data["loss/classification"])
    close(losses.box, data["loss/bbox_regression"])
    close(losses.quality, data.get("loss/bbox_ctrness", np.zeros(())))
    close(losses.total, data["loss/total"])
    losses.total.backward()
    check_gradients(data, file, detector, features)
