"""What lies below all rooms of isodet; it imports none of them."""
