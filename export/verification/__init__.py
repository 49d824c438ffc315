"""Verifying artifacts against their checkpoint, and finding the reason where they fail."""
