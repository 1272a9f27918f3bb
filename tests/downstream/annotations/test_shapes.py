"""The generated set: the same for ever, boxed exactly, and an ordinary COCO file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.annotations.coco import open_coco
from downstream.annotations.shapes import OUTLINES, TEXTURES, draw_scene, write_shapes
from ssldet.data.images import ImageRules
from ssldet.errors import ConfigError


def test_a_scene_is_a_function_of_its_arguments() -> None:
    first, again, other, reseeded = (draw_scene(n, seed=s) for n, s in ((3, 0), (3, 0), (4, 0), (3, 1)))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, reseeded.image)


@pytest.mark.parametrize("name", OUTLINES)
def test_every_outline_fills_the_circle_and_no_more(name: str) -> None:
    axis = np.linspace(-1.2, 1.2, 241)
    u, v = np.meshgrid(axis, axis)
    inside = OUTLINES[name](u, v)
    assert not inside[np.hypot(u, v) > 1.03].any()
    assert inside[np.hypot(u, v) > 0.85].any()
    assert 0.2 < inside.sum() / (np.hypot(u, v) <= 1).sum() < 0.9


def test_boxes_hold_the_objects_exactly() -> None:
    for index in range(12):
        scene = draw_scene(index, size=50, classes=tuple(OUTLINES), objects=(2, 5), object_scale=(0.2, 0.4))
        left, top, right, bottom = scene.boxes.T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= 50).all()
        assert (bottom <= 50).all()
        assert ((right - left) * (bottom - top) >= scene.areas).all()
        assert (scene.areas > 0).all()
        assert scene.image.shape == (50, 50, 3)


def test_an_object_changes_the_pixels_in_its_box_and_no_other() -> None:
    def outline(u: np.ndarray, v: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.zeros_like(u + v, dtype=bool)

    scene = draw_scene(5, size=64, classes=("circle",), objects=(1, 1))
    drawn = OUTLINES["circle"]
    OUTLINES["circle"] = outline
    try:
        empty = draw_scene(5, size=64, classes=("circle",), objects=(1, 1))
    finally:
        OUTLINES["circle"] = drawn
    assert len(empty.boxes) == 0
    changed = (scene.image.astype(int) != empty.image).any(axis=2)
    left, top, right, bottom = scene.boxes[0]
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)


def test_objects_tell_apart_by_texture_and_not_by_class() -> None:
    scenes = [draw_scene(index, objects=(1, 1), object_scale=(0.5, 0.5)) for index in range(20)]
    crops = [
        np.asarray(Image.fromarray(s.image[b[1] : b[3], b[0] : b[2]]).resize((16, 16)), dtype=float).ravel()
        for s in scenes
        for b in s.boxes
    ]
    distances = [np.abs(a - b).mean() for n, a in enumerate(crops) for b in crops[:n]]
    assert np.percentile(distances, 5) > 25, "two patches of the set look alike"
    assert len(TEXTURES) > len({"stripes", "checks"})


def test_a_written_set_opens_as_coco(tmp_path: Path) -> None:
    path = write_shapes(tmp_path / "deep" / "set", images=9, size=48, classes=("star", "ring"), objects=(0, 2), seed=5)
    source = open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))
    assert source.classes == ("star", "ring")
    assert len(source) == 9
    assert source.labels.notes == {}
    for number in range(9):
        scene = draw_scene(number, size=48, classes=("star", "ring"), objects=(0, 2), seed=5)
        assert source[number].targets.labels.tolist() == scene.labels.tolist()
        centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 96
        assert np.allclose(source[number].targets.boxes[:, :2], centres)


def test_a_longer_set_begins_with_the_shorter_one(tmp_path: Path) -> None:
    write_shapes(tmp_path / "a", images=2)
    write_shapes(tmp_path / "b", images=3)
    for name in ("000000.jpg", "000001.jpg"):
        assert (tmp_path / "a/images" / name).read_bytes() == (tmp_path / "b/images" / name).read_bytes()


def test_an_unknown_shape_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'circle'"):
        write_shapes(tmp_path / "set", images=1, classes=("circel",))
    assert not (tmp_path / "set").exists()
