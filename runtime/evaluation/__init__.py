"""Judging detections: COCO's metrics, curves, confusion, and the pages that show them."""
