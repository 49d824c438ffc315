"""Many callers, one detector: their requests run in batches."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
