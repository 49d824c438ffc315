"""The card of an artifact, and where each kind of file keeps it."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
