"""Building blocks of networks, folded blocks, necks and heads."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
