"""The page of the server: its files, and the addresses that they have."""
