"""The ONNX graph: its form, its NMS, and how it is traced."""
