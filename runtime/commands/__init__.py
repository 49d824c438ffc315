"""The commands of `runtime`."""
