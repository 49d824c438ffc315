"""`trainer check-data`: what is wrong with a data set, in words and pictures."""
