"""The models room against numbers that mmdetection produced (tests/golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.assigners import BACKGROUND, IGNORED, assign
from models.assigners.atss import assign_atss
from models.assigners.center import assign_center
from models.assigners.iou import assign_iou
from models.boxes import iou
from models.coders import decode_delta, decode_ltrb, encode_delta, encode_ltrb
from models.config.model import AnchorConfig, AssignConfig, NeckConfig
from models.layers.necks import FPN
from models.losses.boxes import centerness
from models.priors import feature_sizes, priors
from tests.models.small import STRIDES, close

ATSS = AnchorConfig(size=8.0)
RETINANET = AnchorConfig(size=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))


def scene_batch(data: dict, scene: str) -> tuple[Tensor, Tensor]:
    """The scene three times: as it is with padding rows, with padding rows only, with padding in front."""
    boxes = torch.from_numpy(data[f"{scene}_gt_bboxes"])
    padding = torch.tensor([[0.0, 0.0, 0.0, 0.0], [8.0, 8.0, 60.0, 60.0]])  # a box that would match, were it valid
    G = len(boxes)
    valid = torch.zeros(3, G + 2, dtype=torch.bool)
    valid[0, :G] = valid[2, 2:] = True
    return torch.stack([torch.cat([boxes, padding])] * 2 + [torch.cat([padding, boxes])]), valid


def upstream(matched: Tensor) -> np.ndarray:
    """Ours (-1 background, -2 ignored, g) as mmdetection counts (0 background, -1 ignored, g + 1)."""
    out = matched + 1
    out[matched == BACKGROUND], out[matched == IGNORED] = 0, -1
    return out.numpy()


def check_padding(matched: Tensor) -> None:
    """Rows 1 and 2 of `scene_batch` against row 0: padding matches nothing and only shifts indices."""
    assert (matched[1] == BACKGROUND).all()
    np.testing.assert_array_equal(torch.where(matched[2] >= 0, matched[2] - 2, matched[2]), matched[0])


@pytest.mark.parametrize("scene", [f"s{i:02d}" for i in range(13)])
def test_atss_takes_the_positives_of_mmdetection(golden, scene):
    data = golden("assign_atss")
    assert data["num_scenes"] == 13 and data["topk"] == 9
    grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, ATSS, offset=0.0)
    boxes, valid = scene_batch(data, scene)
    matched = assign_atss(grid, boxes, valid, topk=9)
    check_padding(matched)
    ours, theirs = upstream(matched[0]), data[f"{scene}_assigned_gt_inds"]
    if data[f"{scene}_is_tie_scene"]:
        # Distances tie on purpose, and either of two equally near anchors may be a candidate.
        assert (ours > 0).any() and ((ours > 0) == (theirs > 0)).mean() > 0.99
        return
    np.testing.assert_array_equal(ours, theirs)
    positive = ours > 0
    owner = boxes[0][torch.from_numpy(ours[positive].astype(np.int64)) - 1]
    close(iou(grid.boxes_xyxy[positive], owner), data[f"{scene}_pos_max_overlaps"])
    if f"{scene}_pos_centerness" in data:
        close(centerness(grid.points[positive], owner), data[f"{scene}_pos_centerness"])


@pytest.mark.parametrize("scene", [f"s{i:02d}" for i in range(11)])
def test_iou_assignment_is_mmdetections(golden, scene):
    data = golden("assign_maxiou")
    assert data["num_scenes"] == 11 and data["thresholds_pos_neg_minpos"].tolist() == [0.5, 0.4, 0.0]
    grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, RETINANET, offset=0.0)
    boxes, valid = scene_batch(data, scene)
    matched = assign_iou(grid, boxes, valid, pos_iou=0.5, neg_iou=0.4)
    check_padding(matched)
    ours, theirs = upstream(matched[0]), data[f"{scene}_assigned_gt_inds"]
    if data[f"{scene}_is_quirk_scene"]:
        # Upstream, an object of no area takes every anchor that overlaps nothing. Ours takes none.
        nothing = (data[f"{scene}_gt_bboxes"][:, 2:] <= data[f"{scene}_gt_bboxes"][:, :2]).any(axis=1)
        assert nothing.any() and not np.isin(ours, np.flatnonzero(nothing) + 1).any()
        return
    comparable = np.ones(len(ours), bool)
    comparable[data[f"{scene}_rounding_sensitive_inds"]] = False
    assert comparable.mean() > 0.5
    np.testing.assert_array_equal(ours[comparable], theirs[comparable])


@pytest.mark.parametrize("file, kind, anchors", [("assign_atss", "atss", ATSS), ("assign_maxiou", "iou", RETINANET)])
def test_ignore_regions_by_mmdetections_rule(golden, file, kind, anchors):
    data, compared = golden(file), 0
    for key in (key for key in data if key.endswith("_assigned_gt_inds_ignore_iof0.5")):
        scene = key[:3]
        grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, anchors, offset=0.0)
        boxes = torch.from_numpy(np.concatenate([data[f"{scene}_gt_bboxes"], data[f"{scene}_gt_bboxes_ignore"]]))[None]
        valid = torch.arange(boxes.shape[1])[None] < len(data[f"{scene}_gt_bboxes"])
        ours = {over: upstream(assign(AssignConfig(kind=kind, ignore_over=over), grid, boxes, valid, ~valid)[0])
                for over in ("objects", "background")}  # fmt: skip
        none = upstream(assign(AssignConfig(kind=kind, ignore_iof=None), grid, boxes, valid, ~valid)[0])
        comparable = np.ones(len(none), bool)
        comparable[data.get(f"{scene}_rounding_sensitive_inds", [])] = False
        np.testing.assert_array_equal(ours["objects"][comparable], data[key][comparable])
        np.testing.assert_array_equal(none[comparable], data[f"{scene}_assigned_gt_inds"][comparable])
        # Our own rule: what is in a region and would be background is not, and objects keep what they had.
        np.testing.assert_array_equal(ours["background"][none != 0], none[none != 0])
        freed = none == 0
        np.testing.assert_array_equal(ours["background"][freed] == -1, ours["objects"][freed] == -1)
        assert (ours["objects"] != ours["background"]).any() and (ours["background"] != none).any()
        compared += 1
    assert compared >= 1


@pytest.mark.parametrize("mode, radius", [("plain", 0.0), ("center", 1.5)])
@pytest.mark.parametrize("scene", [f"s{i:02d}" for i in range(13)])
def test_center_assignment_and_its_targets_are_mmdetections_fcos(golden, scene, mode, radius):
    data = golden("targets_fcos")
    assert data["num_scenes"] == 13
    grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, ATSS)
    boxes, valid = scene_batch(data, scene)
    matched = assign_center(grid, boxes, valid, radius=radius, range_factor=8.0)
    check_padding(matched)
    comparable = np.ones(matched.shape[1], bool)
    comparable[data[f"{scene}_{mode}_rounding_sensitive_inds"]] = False
    ours = upstream(matched[0])
    np.testing.assert_array_equal(ours[comparable], data[f"{scene}_{mode}_assigned_gt_inds_derived"][comparable])
    labels = np.append(data[f"{scene}_gt_labels"], 80)[np.where(ours > 0, ours - 1, -1)]
    np.testing.assert_array_equal(labels[comparable], data[f"{scene}_{mode}_labels"][comparable])

    selected = data[f"{scene}_{mode}_sel_inds"]
    rows = comparable[selected]
    index = torch.from_numpy(selected[rows].astype(np.int64))
    points, strides = grid.points[index], grid.strides[index]
    owner = boxes[0][matched[0, index]]
    close(encode_ltrb(points, torch.ones_like(strides), owner), data[f"{scene}_{mode}_sel_ltrb_px"][rows], 1e-2)
    close(encode_ltrb(points, strides, owner), data[f"{scene}_{mode}_sel_ltrb_over_stride"][rows])
    close(centerness(points, owner), data[f"{scene}_{mode}_sel_centerness"][rows])


@pytest.mark.parametrize("name, anchors", [("atss", ATSS), ("retina", RETINANET)])
@pytest.mark.parametrize("which", ["gridA", "gridB"])
def test_anchor_grids(golden, name, anchors, which):
    data = golden("anchors")
    grid = priors(padded_sizes(data[f"{which}_img_hw"]), STRIDES, anchors, offset=0.0)
    levels = [data[f"{name}_{which}_l{level}"] for level in range(5)]
    assert grid.level_sizes == tuple(len(level) for level in levels)
    close(grid.boxes_xyxy, np.concatenate(levels), atol=1e-3)
    np.testing.assert_array_equal(grid.strides, np.repeat(STRIDES, grid.level_sizes))


@pytest.mark.parametrize("name, anchors", [("atss", ATSS), ("retina", RETINANET)])
def test_which_anchors_lie_within_an_image_of_a_larger_batch(golden, name, anchors):
    data = golden("anchors")
    batch = data["valid_batch_hw"]
    grid = priors(padded_sizes(batch), STRIDES, anchors)
    within = grid.within(torch.from_numpy(np.stack([data["valid_pad_hw"], batch])))
    np.testing.assert_array_equal(within[0], np.concatenate([data[f"{name}_valid_l{level}"] for level in range(5)]))
    assert within[1].all() and not within[0].all()
    with pytest.raises(ValueError, match="whole grids only"):
        grid._replace(level_shapes=()).within(torch.tensor([[8, 8]]))


@pytest.mark.parametrize("name, anchors", [("atss", ATSS), ("retina", RETINANET)])
def test_anchor_grid_of_a_large_image(golden, name, anchors):
    data = golden("anchors")
    grid = priors(padded_sizes(data["big_img_hw"]), STRIDES, anchors, offset=0.0)
    for level, boxes in enumerate(grid.boxes_xyxy.double().split(grid.level_sizes)):
        ours = [boxes.shape[0] * 4, boxes.sum(), (boxes**2).sum()]
        theirs = data[f"{name}_big_l{level}_count_sum_sumsq"]
        assert theirs[0] in (ours[0], boxes.shape[0])
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-5)
        last = data[f"{name}_big_l{level}_last"]
        close(boxes[-len(last) :], last, atol=1e-2)


def test_fcos_points(golden):
    data = golden("anchors")
    grid = priors(padded_sizes(data["gridA_img_hw"]), STRIDES, ATSS)
    close(grid.points, np.concatenate([data[f"fcos_points_gridA_l{level}"] for level in range(5)]))


def padded_sizes(image_hw: np.ndarray) -> list[tuple[int, int]]:
    height, width = (-(-int(side) // 32) * 32 for side in image_hw)
    return feature_sizes((height, width), (3, 7))


@pytest.mark.parametrize("variant, stds", [("std1", (1.0, 1.0, 1.0, 1.0)), ("std0.1_0.2", (0.1, 0.1, 0.2, 0.2))])
def test_delta_coder(golden, variant, stds):
    data = golden("coders")
    assert data[f"delta_{variant}_stds"].tolist() == list(stds) and not data[f"delta_{variant}_means"].any()
    anchors, boxes = torch.from_numpy(data["priors"]), torch.from_numpy(data["gts"])
    codes = encode_delta(anchors, boxes, stds)
    close(codes, data[f"delta_{variant}_encode"])
    close(decode_delta(anchors, torch.from_numpy(data["deltas_in"]), stds), data[f"delta_{variant}_decode"], 1e-2)
    close(decode_delta(anchors, codes, stds), data[f"delta_{variant}_roundtrip"], 1e-2)


def test_ltrb_coder(golden):
    data = golden("coders")
    points, boxes = torch.from_numpy(data["points"]), torch.from_numpy(data["gts"])
    one = torch.ones(len(points))
    close(encode_ltrb(points, one, boxes), data["dist_encode"], 1e-2)
    close(decode_ltrb(points, one, torch.from_numpy(data["dist_in"])), data["dist_decode"], 1e-2)


def test_overlaps(golden):
    data = golden("losses")
    a, b = torch.from_numpy(data["box_pred"]), torch.from_numpy(data["box_target"])
    close(iou(a, b), data["overlap_iou"])
    rows, columns = data["overlap_pair_iou"].shape
    close(iou(a[:rows, None], b[:columns]), data["overlap_pair_iou"])


@pytest.mark.parametrize(
    "variant, source, relu",
    [("p6_from_p5", "p5", True), ("p6_from_c5", "c5", True), ("mm_on_input", "c5", False),
     ("mm_on_output", "p5", False), ("mm_on_output_relu", "p5", True)],
)  # fmt: skip
def test_feature_pyramid(golden, variant, source, relu):
    data = {k.removeprefix(f"{variant}/"): v for k, v in golden("fpn").items() if k.startswith(f"{variant}/")}
    inputs = [torch.from_numpy(data[f"in_c{level}"]) for level in (3, 4, 5)]
    config = NeckConfig(channels=data["out_p3"].shape[1], p6_from=source, p7_relu=relu)
    neck = FPN(config, [0, *(x.shape[1] for x in inputs)])
    weights = {key.removeprefix("sd/"): value for key, value in data.items() if key.startswith("sd/")}
    neck.load_state_dict({fpn_key(key): torch.from_numpy(value) for key, value in weights.items()})
    levels = neck([inputs[0].new_zeros(1, 1, 1, 1), *inputs])
    for level, ours in zip((3, 4, 5, 6, 7), levels, strict=True):
        close(ours, data[f"out_p{level}"])


def fpn_key(key: str) -> str:
    """A parameter's name in torchvision or mmdetection -> its name in `FPN`."""
    parts = key.split(".")
    if "extra_blocks" in parts:
        return f"extra.{int(parts[3][1]) - 6}.conv.{parts[-1]}"
    index = int(next(part for part in parts if part.isdigit()))
    if "lateral_convs" in parts or "inner_blocks" in parts:
        return f"laterals.{index}.conv.{parts[-1]}"
    return f"outputs.{index}.conv.{parts[-1]}" if index < 3 else f"extra.{index - 3}.conv.{parts[-1]}"
