"""Pictures and frames: read, checked, resized, drawn on."""
