"""Post-training quantization: calibration pictures, ranges, and the sensitivity of layers."""
