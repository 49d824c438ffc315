"""The configuration of a model: typed, strict, and what no graph of isodet holds."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
