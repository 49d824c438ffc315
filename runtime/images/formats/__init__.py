"""Formats of encoded pictures: size, orientation and damage, read from their bytes without decoding."""
