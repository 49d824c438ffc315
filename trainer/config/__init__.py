"""The training configuration: dataclasses, section by section, and the files that it is read from."""
