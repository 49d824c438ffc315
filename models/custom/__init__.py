"""Parts of a user's own: found, checked and called."""
