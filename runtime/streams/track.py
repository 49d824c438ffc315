"""Following objects from frame to frame: ByteTrack, by the package `trackers` (the extra `track`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from runtime.detections import Detections

LOW_SCORE = 0.1
"""The lowest score with which a detection may continue a track. A track begins at the detector's threshold (ByteTrack,
Zhang et al. 2022, section 3)."""


class TrackError(IsodetError, RuntimeError):
    """Tracking is not possible here; the message says what to install."""


class Tracker:
    """Follows the objects of one source, frame by frame.

    `limits`: the lowest score of a reported detection, one number or [C] by label, as in the detector. `fps`: of the
    source, 0 for pictures. It remembers a lost object for a second. It matches objects by place, whatever their class.
    Raises `TrackError` where the packages of the extra are missing.
    """

    def __init__(self, limits: float | NDArray[np.float32], fps: float) -> None:
        try:
            from trackers import ByteTrackTracker
        except ModuleNotFoundError as error:
            raise TrackError(f"tracking needs the package {error.name!r}: pip install 'isodet[track]'") from None
        self._limits = limits
        lowest = float(np.min(limits))
        self._tracker = ByteTrackTracker(
            lost_track_buffer=max(1, round(fps or 30)),
            frame_rate=fps or 30.0,
            track_activation_threshold=lowest,
            high_conf_det_threshold=lowest,
        )

    @property
    def detect_from(self) -> float:
        """The lowest score of the detections that `update` needs."""
        return min(LOW_SCORE, float(np.min(self._limits)))

    def update(self, detections: Detections, time_s: float | None) -> tuple[Detections, NDArray[np.int64]]:
        """The detections to report, and the number of each one's object, [D]; -1 where it has none yet.

        It reports detections that reach the detector's limits or continue a track. `time_s` rises from frame to frame;
        None for frames without times, at equal distances.
        """
        candidates = detections.to_supervision()
        candidates.data["row"] = np.arange(len(detections))  # the tracker returns them in another order
        tracked = self._tracker.update(candidates, timestamp=time_s)
        tracks = np.full(len(detections), -1, np.int64)
        if len(tracked):
            tracks[tracked.data["row"]] = tracked.tracker_id
        limits = self._limits[detections.labels] if isinstance(self._limits, np.ndarray) else self._limits
        reported = (detections.scores >= limits) | (tracks >= 0)
        return detections[reported], tracks[reported]
