"""Artifacts proven against their checkpoint, and explained where they fail."""
