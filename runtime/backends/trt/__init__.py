"""TensorRT and TensorRT-RTX: engines, their contexts and libraries."""
