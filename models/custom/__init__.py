"""Custom parts, which a user wrote: finding, checking and calling them."""
