"""The commands of `exporter`."""
