"""The deployed graph: pixels to detections in one module, and the form of its input."""
