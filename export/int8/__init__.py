"""8 bits after training: pictures, ranges, and which layers suffer."""
