"""The folder of a run: what is in it, who trains in it, and what its checkpoints say."""
