"""Formats of encoded pictures: what their bytes say of size, orientation and damage, without decoding."""
