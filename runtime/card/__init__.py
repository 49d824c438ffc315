"""What an artifact says of itself, and where each kind of file keeps it."""
