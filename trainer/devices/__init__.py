"""What the hardware decides: precision, processes, memory."""
