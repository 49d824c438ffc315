"""`trainer new`: a config made from the data and the machine."""
