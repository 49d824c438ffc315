"""Graphs that were damaged on purpose."""

from __future__ import annotations

import numpy as np
import onnx


def boxes_moved(model: onnx.ModelProto, pixels: float) -> onnx.ModelProto:
    """`model`, whose boxes come out `pixels` to the right and below."""
    (node,) = [n for n in model.graph.node if "boxes" in n.output]
    node.output[list(node.output).index("boxes")] = "boxes_before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(pixels), "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["boxes_before", "shift"], ["boxes"]))
    return model
