"""Count objects, not detections, and draw their paths: python examples/tracking.py best.onnx clip.mp4 counted.mp4

Needs the extras track and cpu or gpu: pip install "isodet[track,cpu]". supervision draws boxes, labels and traces.
"""

import sys

import cv2
import supervision as sv
from trackers import ByteTrackTracker

from runtime import Detector

model, source, out = sys.argv[1:4]
detector = Detector(model)
tracker = ByteTrackTracker(track_activation_threshold=0.5, high_conf_det_threshold=0.5)
boxes, labels, traces = sv.BoxAnnotator(), sv.LabelAnnotator(), sv.TraceAnnotator()
writer: cv2.VideoWriter | None = None
objects: dict[int, str] = {}

# ByteTrack continues a track with weak detections, so it needs those too.
for frame, detections in detector.stream(source, threshold=0.1):
    tracked = tracker.update(detections.to_supervision())
    tracked = tracked[tracked.tracker_id >= 0]  # -1: seen once, perhaps a false positive
    texts = [f"#{number} {name}" for number, name in zip(tracked.tracker_id, tracked.data["class_name"], strict=True)]
    objects.update(zip(tracked.tracker_id.tolist(), tracked.data["class_name"].tolist(), strict=True))
    picture = traces.annotate(labels.annotate(boxes.annotate(frame.copy(), tracked), tracked, texts), tracked)
    if writer is None:
        writer = cv2.VideoWriter(out, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (frame.shape[1], frame.shape[0]))
    writer.write(picture)

if writer is not None:
    writer.release()
print(f"{len(objects)} objects: {sorted(objects.values())}")
