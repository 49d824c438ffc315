"""From annotated pictures to batches of a training."""
