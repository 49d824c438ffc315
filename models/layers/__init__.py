"""Building blocks of networks, folded blocks, necks and heads."""
