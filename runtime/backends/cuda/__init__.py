"""CUDA: devices, memory and copies."""
