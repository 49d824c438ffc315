"""The training configuration: dataclasses, section by section, and the files that it is read from."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
