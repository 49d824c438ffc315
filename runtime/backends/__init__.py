"""What runs a model: ONNX Runtime, TensorRT engines, PyTorch; each is loaded only when a model needs it."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
