"""The audit: the precision in which a file really computes."""
