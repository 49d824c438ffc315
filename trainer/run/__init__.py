"""The folder of a run: its content, its lock, its checkpoints and their cards."""
