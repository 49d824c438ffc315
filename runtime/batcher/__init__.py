"""Many callers, one detector: requests are put together to batches."""
