"""Small objects are counted after the resize, and tiles are recommended that show them large enough."""

import numpy as np
import pytest

from downstream.detection import Detection
from ssldet.data.geometry import EvaluationSize
from ssldet.data.inspection import Inspection
from ssldet.data.object_sizes import WANTED, ObjectSizes, Resizing

RESIZING = EvaluationSize("detr", 200, 400)
AERIAL = ObjectSizes(boxes=np.array([[40.0, 40.0]] * 3 + [[400.0, 200.0]]), images=np.array([[1000, 1500]] * 4))


def test_objects_are_small_by_what_the_detector_sees() -> None:
    # 1000 x 1500 becomes 200 x 300: a fifth of each side.
    assert AERIAL.small(RESIZING).tolist() == [True, True, True, False]
    mixed = ObjectSizes(boxes=np.array([[31.0, 33.0], [33.0, 32.0], [100.0, 8.0]]), images=np.array([[200, 200]] * 3))
    assert mixed.small(RESIZING).tolist() == [True, False, True], "the area counts"
    for size in ((64, 90), (31, 400)):
        one = ObjectSizes(boxes=np.array([[20.0, 20.0]]), images=np.array([size]))
        assert one.small(RESIZING).tolist() == [20 * 20 * np.prod(RESIZING.of(size)) / np.prod(size) < 32 * 32]


def test_the_recommended_tile_is_the_largest_that_shows_objects_large_enough() -> None:
    told = AERIAL.advice(RESIZING, "a/recipe")
    assert "75% of the objects are smaller than 32 x 32 pixels as a/recipe sees them" in told
    assert "it makes 300 x 200 of an image of 1500 x 1000" in told
    assert told.endswith("--set task.tile_size=160")
    assert 40 * 200 / 160 >= WANTED > 40 * 200 / 192
    tiled = Detection(scales=(200,), eval_scale=200, max_size=400, tile_size=160).views(training=False)
    assert isinstance(tiled, Resizing)
    assert not AERIAL.small(tiled).any(), "with these tiles, nothing is small"
    assert tiled.of((1000, 1500)) == (1250, 1875)


@pytest.mark.parametrize(
    ("boxes", "images", "says"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2), dtype=np.int64), ""),
        (np.array([[40.0, 40.0], [400.0, 400.0], [400.0, 300.0]]), np.array([[1000, 1000]] * 3), ""),
        (np.array([[5.0, 5.0]]), np.array([[1000, 1000]]), "enlarge images"),
        (np.array([[15.0, 15.0]]), np.array([[100, 120]]), "enlarge images"),
    ],
    ids=["nothing", "few are small", "no tile is small enough", "images are smaller than tiles"],
)
def test_tiles_are_recommended_where_they_help(boxes: np.ndarray, images: np.ndarray, says: str) -> None:
    told = ObjectSizes(boxes=boxes, images=images).advice(RESIZING, "a/recipe")
    assert says in told
    assert bool(says) == bool(told)


def test_an_inspection_counts_and_recommends() -> None:
    inspection = Inspection(spec="coco:trees", counts={"boxes": 4}, object_sizes=AERIAL).seen_by(RESIZING, "a/recipe")
    assert inspection.small_objects == {"a/recipe": 3}
    assert "  advice   75% of the objects" in str(inspection)
    assert "       3 objects smaller than 32 x 32 pixels in a/recipe" in str(inspection)
    document = inspection.to_json()
    assert document["small_objects"] == {"a/recipe": 3}
    assert document["advice"] == inspection.advice
    assert "object_sizes" not in document
    assert Inspection(spec="photos").seen_by(RESIZING, "a/recipe") == Inspection(spec="photos")
