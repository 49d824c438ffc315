"""CUDA as far as runtime needs it: devices, memory, copies."""
