"""Many callers, one detector: requests are put together to batches."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
