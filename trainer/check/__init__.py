"""`trainer check-data`: the faults of a data set, in words and pictures."""
