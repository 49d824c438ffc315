"""The values that an assigner gives to priors without an object."""

BACKGROUND = -1
IGNORED = -2
