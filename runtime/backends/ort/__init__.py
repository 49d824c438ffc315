"""ONNX Runtime: on a CPU, with CUDA, and with TensorRT-RTX as its provider."""
