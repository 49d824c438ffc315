"""PyTorch: checkpoints without an export."""
