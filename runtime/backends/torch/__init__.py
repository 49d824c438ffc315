"""PyTorch: checkpoints run as they are."""
