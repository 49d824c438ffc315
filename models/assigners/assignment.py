"""What an assigner says of a prior that no object was given to."""

BACKGROUND = -1
IGNORED = -2
