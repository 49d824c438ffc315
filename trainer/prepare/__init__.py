"""Data sets written: converted, and mined for hard negatives."""
