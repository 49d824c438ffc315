"""The same object in frame after frame: ByteTrack, by the package `trackers` (the extra `track`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isodet.errors import IsodetError
from runtime.detections import Detections

LOW_SCORE = 0.1
"""From here on a detection may continue a track, though none begins below the detector's threshold (ByteTrack,
Zhang et al. 2022, section 3)."""


class TrackError(IsodetError, RuntimeError):
    """Tracking that cannot be had here; the message says what to install."""


class Tracker:
    """Follows the objects of one source, frame by frame.

    `limits`: lowest score of a reported detection, one or [C] by label, as the detector has it. `fps` of the source,
    0 for pictures. A lost object is remembered for a second. Objects are matched by place, whatever their class.
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
            lost_track_buffer=max(1, round(fps or 30)), frame_rate=fps or 30.0,
            track_activation_threshold=lowest, high_conf_det_threshold=lowest,
        )  # fmt: skip

    @property
    def detect_from(self) -> float:
        """The score from which on `update` wants detections."""
        return min(LOW_SCORE, float(np.min(self._limits)))

    def update(self, detections: Detections, time_s: float | None) -> tuple[Detections, NDArray[np.int64]]:
        """The detections to report, and the number of the object that each is, [D]; -1 where that is not known yet.

        Reported is what reaches the detector's limits or continues a track. `time_s` rises from frame to frame; None
        where frames have no times and are equally far apart.
        """
        given = detections.to_supervision()
        given.data["row"] = np.arange(len(detections))  # it comes back in another order
        followed = self._tracker.update(given, timestamp=time_s)
        tracks = np.full(len(detections), -1, np.int64)
        if len(followed):
            tracks[followed.data["row"]] = followed.tracker_id
        limits = self._limits[detections.labels] if isinstance(self._limits, np.ndarray) else self._limits
        shown = (detections.scores >= limits) | (tracks >= 0)
        return detections[shown], tracks[shown]
