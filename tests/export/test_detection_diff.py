"""Pairing of detections, on cases that can be checked by hand."""

import pytest

from export.verification.detection_diff import compare_by_image, compare_detections
from tests.export.edges import found

BOX = (10.0, 10.0, 30.0, 30.0, 0.9, 0)


@pytest.mark.parametrize(
    ("other", "unmatched", "box", "score"),
    [
        (found(), 1, 0, 0),
        (found(BOX), 0, 0, 0),
        (found((10, 12, 30, 33, 0.8, 0)), 0, 3, 0.1),
        (found((10, 10, 30, 30, 0.9, 1)), 1, 0, 0),  # another class
        (found((25, 25, 45, 45, 0.9, 0)), 1, 0, 0),  # elsewhere
        (found((11, 10, 30, 30, 0.9, 0), (10, 10, 30, 30, 0.5, 0)), 0, 0, 0.4),  # the best overlap counts
    ],
)
def test_one_box(other, unmatched, box, score):
    result = compare_detections({7: found(BOX)}, {7: other})
    assert (result.boxes, result.unmatched) == (1, unmatched)
    assert (result.box_max_px, result.score_max) == (pytest.approx(box), pytest.approx(score))


def test_a_box_is_used_once():
    twice = found(BOX, (10, 10, 30, 30, 0.8, 0))
    assert compare_detections({1: twice}, {1: found(BOX)}).unmatched == 1


def test_nothing_and_low_scores_are_no_drift():
    assert compare_detections({}, {}).boxes == 0
    assert compare_detections({1: found((0, 0, 5, 5, 0.06, 0))}, {1: found()}).boxes == 0


def test_what_only_the_other_has_is_extra_unless_the_reference_has_it_below_the_score():
    weak = (40.0, 40.0, 60.0, 60.0, 0.05, 1)
    strong = (*weak[:4], 0.4, 1)
    assert compare_detections({1: found(BOX)}, {1: found(BOX, strong)}).extra == 1
    assert compare_detections({1: found(BOX, weak)}, {1: found(BOX, strong)}).extra == 0
    assert compare_detections({1: found(BOX)}, {1: found(BOX, weak)}).extra == 0


def test_images_are_ranked_by_what_changed_in_objects():
    """Lost and new count with their scores, a pair with its score times 1 - IoU plus the change of its score."""
    elsewhere = (50.0, 50.0, 70.0, 70.0, 0.4, 1)
    half = (10.0, 10.0, 30.0, 25.0, 0.7, 0)  # IoU 0.75
    reference = {1: found(BOX), 2: found(BOX), 3: found(BOX), 4: found()}
    other = {1: found(BOX), 2: found(elsewhere), 3: found(half), 4: found()}
    ranked = compare_by_image(reference, other)
    assert [image.image_id for image in ranked][:2] == [2, 3]
    assert [image.moved for image in ranked] == pytest.approx([0.9 + 0.4, 0.9 * 0.25 + 0.2, 0, 0], abs=1e-6)
    lost = ranked[0]
    assert (lost.boxes, lost.unmatched, lost.extra) == (1, 1, 1)
    assert sum(image.boxes for image in ranked) == compare_detections(reference, other).boxes


def test_pairs_may_stand_in_another_order_of_score():
    """Two boxes that swap ranks are the same two boxes."""
    a, b = (0.0, 0.0, 20.0, 20.0), (60.0, 60.0, 90.0, 90.0)
    result = compare_detections({1: found((*a, 0.9, 0), (*b, 0.8, 0))}, {1: found((*b, 0.9, 0), (*a, 0.8, 0))})
    assert (result.unmatched, result.extra, result.box_max_px) == (0, 0, 0)
    assert result.score_max == pytest.approx(0.1)
