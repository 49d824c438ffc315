"""Boxes on a webcam's picture, live. q ends. python examples/webcam.py best.onnx [camera or video]"""

import sys

import cv2

from runtime import Detector, draw_detections

if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
detector = Detector(sys.argv[1])
for frame, detections in detector.stream(sys.argv[2] if len(sys.argv) > 2 else 0):
    cv2.imshow("webcam", draw_detections(frame, detections))
    if cv2.waitKey(1) & 0xFF == ord("q"):
        break
cv2.destroyAllWindows()
