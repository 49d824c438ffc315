"""Graphs that were changed on purpose, and one that is none of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from runtime import Card
from runtime.card.card import METADATA_KEY


def boxes_moved(model: onnx.ModelProto, pixels: float) -> onnx.ModelProto:
    """`model`, whose boxes come out `pixels` to the right and below."""
    (node,) = [n for n in model.graph.node if "boxes" in n.output]
    node.output[list(node.output).index("boxes")] = "boxes_before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(pixels), "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["boxes_before", "shift"], ["boxes"]))
    return model


def edited(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """Changes the graph in a file, whose path it returns."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def change_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Gives the first weight of at least two dimensions with `name` in its name what `change` makes of its values."""
    tensor = next(t for t in model.graph.initializer if name in t.name and len(t.dims) > 1)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(values.copy()).astype(values.dtype), tensor.name))


def set_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A change that sets the first number of an array."""

    def change(values: np.ndarray) -> np.ndarray:
        values.flat[0] = value
        return values

    return change


def set_card(model: onnx.ModelProto, card: Card) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps(card.to_json())


def foreign_graph() -> onnx.ModelProto:
    """A graph of another project, without a card."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
