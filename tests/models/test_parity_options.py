"""Peers' conventions as options, array by array: torchvision's grids, coders and matching (tests/golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isodet.strict import ConfigError
from models.assigners.center import assign_center
from models.assigners.iou import assign_iou
from models.coders import decode, decode_delta, decode_ltrb, encode_delta
from models.config.model import AnchorConfig, BoxConfig, model_config
from models.importers import torchvision
from models.priors import Priors, priors
from tests.models.small import STRIDES, close


def anchors_of(architecture: str) -> AnchorConfig:
    return model_config({**torchvision.conventions(architecture), "classes": ["a"]}).anchors


RETINANET, FCOS = anchors_of("retinanet_resnet50_fpn"), anchors_of("fcos_resnet50_fpn")


@pytest.mark.parametrize("name, anchors", [("retina", RETINANET), ("fcos", FCOS)])
@pytest.mark.parametrize("which", ["gridC", "gridD"])
def test_torchvisions_grids(golden, name, anchors, which):
    data = golden("anchors")
    padded, sizes = tuple(data[f"tv_{which}_padded_hw"].tolist()), data[f"tv_{which}_feat_hw"].tolist()
    grid = priors(sizes, STRIDES, anchors, input_hw=padded)
    np.testing.assert_array_equal(grid.boxes_xyxy, data[f"tv_{name}_{which}"])
    np.testing.assert_array_equal(grid.strides, np.repeat(STRIDES, grid.level_sizes))
    for level, stride in enumerate(STRIDES):
        cell = priors([(1, 1)], [stride], anchors, input_hw=(stride, stride))
        np.testing.assert_array_equal(cell.boxes_xyxy, data[f"tv_{name}_cell_anchors_l{level}"])


def test_the_rule_of_torchvisions_strides_matters_where_sides_do_not_divide():
    anchors = AnchorConfig(stride_rule="padded_over_grid", offset=0.0)
    x, y = priors([(2, 3)], [64], anchors, input_hw=(96, 160)).points.unbind(-1)
    assert x.unique().tolist() == [0, 53, 106] and y.unique().tolist() == [0, 48]
    nominal = priors([(2, 3)], [64], AnchorConfig(offset=0.0), input_hw=(96, 160)).points
    assert nominal.unique().tolist() == [0, 64, 128]
    with pytest.raises(ValueError, match="input_hw"):
        priors([(2, 3)], [64], anchors)


@pytest.mark.parametrize("variant, std", [("w1", (1.0, 1.0, 1.0, 1.0)), ("w10_5", (0.1, 0.1, 0.2, 0.2))])
def test_torchvisions_delta_coder_clamps_above_only(golden, variant, std):
    data = golden("coders")
    anchors, boxes, codes = (torch.from_numpy(data[name]) for name in ("priors", "gts", "deltas_in"))
    close(encode_delta(anchors, boxes, std), data[f"tv_boxcoder_{variant}_encode"])
    decoded = decode_delta(anchors, codes, std, clamp="upper")
    close(decoded, data[f"tv_boxcoder_{variant}_decode"], 1e-2)
    height, width = data["max_shape_hw"].tolist()
    clipped = decoded.clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    close(clipped, data[f"tv_boxcoder_{variant}_decode_clip"], 1e-2)


def test_clipped_boxes(golden):
    data = golden("coders")
    height, width = data["max_shape_hw"].tolist()
    limit = torch.tensor([width, height, width, height]).float()
    anchors, codes = torch.from_numpy(data["priors"]), torch.from_numpy(data["deltas_in"])
    for variant, std in (("std1", (1.0,) * 4), ("std0.1_0.2", (0.1, 0.1, 0.2, 0.2))):
        boxes = decode_delta(anchors, codes, std).clamp(min=0).minimum(limit)
        close(boxes, data[f"delta_{variant}_decode_clip"], 1e-2)
    points = torch.from_numpy(data["points"])
    boxes = decode_ltrb(points, torch.ones(len(points)), torch.from_numpy(data["dist_in"]))
    close(boxes.clamp(min=0).minimum(limit), data["dist_decode_clip"], 1e-2)


def test_torchvisions_linear_coder_counts_in_anchor_sides(golden):
    data = golden("coders")
    anchors = torch.from_numpy(data["tv_linear_anchors"])
    grid = Priors(anchors, torch.ones(len(anchors)), (len(anchors),))
    config = BoxConfig(code="ltrb", activation="relu", unit="anchor")
    codes = torch.from_numpy(data["tv_linear_decode_in"])
    assert (codes >= 0).all()
    close(decode(config, grid, codes), data["tv_linear_decode"], 1e-2)
    encoded = torch.from_numpy(data["tv_linear_encode"])
    inside = (encoded >= 0).all(dim=-1)  # a point outside its box cannot be said in distances
    assert inside.sum() > 10
    close(decode(config, grid, encoded)[inside], data["gts"][inside], 1e-2)


@pytest.mark.parametrize(
    "activation, unit, expected",
    [("exp", "stride", 16.0), ("exp", "pixel", 2.0), ("relu", "stride", 8 * np.log(2)), ("relu", "pixel", np.log(2))],
)
def test_units_and_activations(activation, unit, expected):
    grid = Priors(torch.tensor([[10.0, 20.0, 14.0, 26.0]]), torch.tensor([8.0]), (1,))
    code = torch.full((2, 1, 4), float(np.log(2)))  # a batch, as the graph decodes
    boxes = decode(BoxConfig(code="ltrb", activation=activation, unit=unit), grid, code)
    close(boxes[1, 0], np.array([12 - expected, 23 - expected, 12 + expected, 23 + expected]))


def test_distances_in_pixels_stay_finite_and_are_not_cut_on_a_picture():
    grid = Priors(torch.zeros(2, 4), torch.full((2,), 8.0), (2,))
    codes = torch.tensor([[9.0] * 4, [100.0] * 4])
    boxes = decode(BoxConfig(code="ltrb", unit="pixel"), grid, codes)
    assert boxes.isfinite().all() and torch.isclose(boxes[0, 2], torch.tensor(9.0).exp())


@pytest.mark.parametrize("scene", [f"s{i}" for i in range(6)])
def test_torchvisions_retinanet_matching(golden, scene):
    data = golden("match_torchvision")
    assert data["num_scenes"] == 6
    batch = tuple(data[f"{scene}_batch_hw"].tolist())
    grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, RETINANET, input_hw=batch)
    boxes = torch.from_numpy(data[f"{scene}_gt_boxes"])[None]
    ours = assign_iou(grid, boxes, torch.ones(boxes.shape[:2]).bool(), 0.5, 0.4, rescue="restore")[0].numpy()
    theirs = data[f"{scene}_retinanet_matched_idxs"]
    comparable = np.ones(len(ours), bool)
    comparable[data[f"{scene}_retinanet_rounding_sensitive_inds"]] = False
    assert (theirs >= 0).any() and comparable.mean() > 0.9
    np.testing.assert_array_equal(ours[comparable], theirs[comparable])


@pytest.mark.parametrize("scene", [f"s{i}" for i in range(6)])
def test_torchvisions_fcos_matching(golden, scene):
    data = golden("match_torchvision")
    batch = tuple(data[f"{scene}_batch_hw"].tolist())
    grid = priors(data[f"{scene}_feat_hw"].tolist(), STRIDES, FCOS, input_hw=batch)
    boxes = torch.from_numpy(data[f"{scene}_gt_boxes"])[None]
    valid = torch.ones(boxes.shape[:2]).bool()
    ours = assign_center(grid, boxes, valid, radius=1.5, range_factor=8.0, range_ends="strict")[0].numpy()
    theirs = data[f"{scene}_fcos_matched_idxs"]
    assert (theirs >= 0).any()
    np.testing.assert_array_equal(ours >= 0, theirs >= 0)
    # torchvision compares float32(1e8 - area), in which areas a few px^2 apart are equal and the first box wins.
    differ = ours != theirs
    area = (boxes[0, :, 2:] - boxes[0, :, :2]).prod(dim=-1).numpy()
    rounded = np.float32(1e8) - area
    np.testing.assert_array_equal(rounded[ours[differ]], rounded[theirs[differ]])
    assert differ.mean() < 0.01


def test_strict_ranges_leave_out_both_ends():
    """An object whose farthest side is exactly 64 px away fits P3 and P4, or neither."""
    grid = priors([(16, 16), (8, 8)], [8, 16], AnchorConfig(size=1.0, offset=0.0))
    boxes, valid = torch.tensor([[[0.0, 0.0, 128.0, 128.0]]]), torch.ones(1, 1).bool()
    middle = (grid.points == 64).all(dim=-1)
    kept = {ends: assign_center(grid, boxes, valid, 1.5, 8.0, ends)[0][middle] for ends in ("inclusive", "strict")}
    assert kept["inclusive"].tolist() == [0, 0] and kept["strict"].tolist() == [-1, -1]


def test_rescued_anchors_go_to_the_object_or_to_their_own_best():
    """Object 1 is overlapped most by an anchor that overlaps object 0 more."""
    anchor = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    boxes, valid = torch.tensor([[[0.0, 0.0, 100.0, 90.0], [0.0, 0.0, 40.0, 40.0]]]), torch.ones(1, 2).bool()
    grid = Priors(anchor, torch.tensor([8.0]), (1,))
    assert assign_iou(grid, boxes, valid, rescue="overwrite").tolist() == [[1]]
    assert assign_iou(grid, boxes, valid, rescue="restore").tolist() == [[0]]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"box": {"activation": "relu"}}, r"model\.box\.activation: .*code: ltrb"),
        ({"box": {"unit": "anchor"}}, r"model\.box\.activation: .*code: ltrb"),
        ({"detector": "fcos", "box": {"clamp": "upper"}}, r"model\.box\.clamp: .*code: delta"),
        ({"anchors": {"offset": 2.0}}, r"model\.anchors\.offset: "),
        ({"postprocess": {"level_by": "class"}}, r"model\.postprocess\.level_by: .*level_candidates"),
        ({"postprocess": {"level_candidates": 5000}}, r"model\.postprocess\.level_candidates: .*3840"),
        ({"head": {"conv_bias": True, "block": "repconv", "norm": "bn"}}, r"model\.head\.block: .*conv_bias: false"),
    ],
)
def test_options_that_say_nothing_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        model_config({"classes": ["a"], **keys})
