"""What runs a model: ONNX Runtime, TensorRT engines, PyTorch; each is loaded only when a model needs it."""
