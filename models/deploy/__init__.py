"""The deployed graph: pixels to detections in one module, and the form of its input."""

from isodet.old_names import keep_old_names

keep_old_names(__name__)
