import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssldet.report.pictures import (
    LONG_SIDE,
    colour_of,
    contact_sheet,
    draw_answers,
    draw_detections,
    draw_problem,
)
from ssldet.types import Detections

GREY = 128


def _image(height: int = 60, width: int = 80) -> Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def _found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels if labels is not None else range(len(scores)), dtype=torch.long),
    )


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def _share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((_pixels(picture) == np.array(colour)).all(-1).mean())


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    none = _found([], [])
    assert draw_detections(_image(), none).size == (LONG_SIDE, LONG_SIDE * 60 // 80)
    assert draw_detections(_image(500, 900), none).size == (900, 500)
    assert draw_detections(_image(1, 1), none).size == (LONG_SIDE, LONG_SIDE)


def test_a_frame_lies_on_its_box_and_nowhere_else() -> None:
    picture = draw_detections(_image(400, 800), _found([[200, 200, 600, 300]], [0.9], [2]))
    pixels, colour = _pixels(picture), np.array(colour_of(2))
    for x, y in ((400, 201), (400, 299), (201, 250), (599, 250)):
        assert (pixels[y, x] == colour).all(), (x, y)
    assert (pixels[250, 400] == GREY).all(), "the inside stays visible"
    assert (pixels[320:, :] == GREY).all(), "nothing is drawn below"
    assert (pixels[:, 620:] == GREY).all(), "nothing is drawn beside"
    assert (pixels[170:199, 200:260] != GREY).any(), "the caption stands above"


def test_boxes_of_a_small_image_are_enlarged_with_it() -> None:
    picture = draw_detections(_image(60, 80), _found([[40, 30, 60, 50]], [0.9], [0]))
    scale = LONG_SIDE / 80
    assert (_pixels(picture)[round(40 * scale), round(60 * scale) - 1] == np.array(colour_of(0))).all()


def test_what_is_below_the_threshold_or_not_finite_is_not_drawn() -> None:
    empty = draw_detections(_image(), _found([], []))
    weak = _found([[10, 10, 50, 50]], [0.4])
    assert draw_detections(_image(), weak).tobytes() == empty.tobytes()
    assert draw_detections(_image(), weak, threshold=None).tobytes() != empty.tobytes()
    bad = _found([[float("nan"), 1, 5, 5], [1, 1, float("inf"), 5], [1, 1, 5, 5]], [0.9, 0.9, float("nan")])
    assert draw_detections(_image(), bad, threshold=None).tobytes() == empty.tobytes()


def test_boxes_outside_or_inside_out_are_drawn_where_they_touch_the_image() -> None:
    odd = _found([[-50, -50, 500, 500], [70, 50, 10, 10], [90, 90, 99, 99], [5, 5, 5, 5]], [0.9] * 4)
    picture = draw_detections(_image(), odd)
    assert picture.size == (LONG_SIDE, LONG_SIDE * 60 // 80)
    assert _share(picture, colour_of(1)) > 0


def test_names_show_and_odd_ones_do_no_harm() -> None:
    found = _found([[10, 20, 50, 50]], [0.9], [1])
    pictures = {
        name: draw_detections(_image(), found, classes=["ace", name]).tobytes()
        for name in ("king", "дом", "a\nb", "\udcff\x1b", "$x^2$", "long " * 40)
    }
    assert len(set(pictures.values())) == len(pictures)
    assert draw_detections(_image(), found, classes=["ace"]).tobytes() not in pictures.values()


def test_captions_of_a_crowd_leave_the_image_visible() -> None:
    boxes = [[x, y, x + 4.0, y + 4.0] for x in range(0, 76, 6) for y in range(0, 56, 6)]
    crowd = draw_detections(_image(), _found(boxes, [0.9] * len(boxes), [0] * len(boxes)))
    assert 0.02 < _share(crowd, colour_of(0)) < 0.8


def test_true_boxes_are_dashed() -> None:
    truth = torch.tensor([[100.0, 100.0, 700.0, 300.0]])
    picture = draw_detections(_image(400, 800), _found([], []), truth_boxes_xyxy=truth)
    edge = _pixels(picture)[100, 110:690]
    white = (edge == 255).all(-1)
    assert 0.3 < white.mean() < 0.7


def test_neighbouring_labels_differ() -> None:
    colours = [colour_of(label) for label in range(100)]
    assert len(set(colours)) == 100
    assert all(0 <= part <= 255 for colour in colours for part in colour)


@pytest.mark.parametrize("count", [1, 3, 10, 37])
def test_a_problem_shows_each_patch_in_the_colour_of_its_box(count: int) -> None:
    patches = torch.full((count, 3, 16, 12), 10, dtype=torch.uint8)
    corner = torch.rand(count, 2) * 20
    picture = draw_problem(_image(), patches, torch.cat([corner, corner + 30], dim=1))
    assert picture.width > LONG_SIDE
    strip = picture.crop((LONG_SIDE, 0, *picture.size))
    assert all(_share(strip, colour_of(number)) > 0 for number in range(count))
    assert _share(strip, (10, 10, 10)) > 0.01


def test_a_problem_without_patches_is_the_image() -> None:
    picture = draw_problem(_image(), torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 4))
    assert picture.size == (LONG_SIDE, LONG_SIDE * 60 // 80)


def test_answers_show_the_most_confident_one_of_each_patch() -> None:
    patches = torch.full((2, 3, 16, 16), 10, dtype=torch.uint8)
    truth = torch.tensor([[0.0, 100, 200, 200], [500, 100, 700, 300]])
    found = _found([[10, 250, 210, 350], [300, 30, 400, 80], [500, 320, 600, 380]], [0.2, 0.9, 0.4], [0, 0, 1])
    pixels = _pixels(draw_answers(_image(400, 800), patches, truth, found))
    first, second = np.array(colour_of(0)), np.array(colour_of(1))
    assert (pixels[55, 301] == first).all(), "the confident answer is drawn"
    assert not (pixels[260:340, 210] == first).all(-1).any(), "the other one is not"
    assert (pixels[350, 501] == second).all()
    assert (pixels[110:190, 199] == first).all(-1).any(), "the truth is drawn too"


def test_a_patch_without_answer_is_said_so() -> None:
    patches = torch.full((2, 3, 16, 16), 10, dtype=torch.uint8)
    truth = torch.tensor([[0.0, 0, 20, 20], [30, 30, 50, 50]])
    one = draw_answers(_image(), patches, truth, _found([[0, 0, 20, 20]], [0.9], [0]))
    none = draw_answers(_image(), patches, truth, _found([], []))
    assert one.size == none.size
    assert one.tobytes() != none.tobytes()


def test_drawing_is_deterministic_and_leaves_its_input_alone() -> None:
    image, found = _image(), _found([[10, 20, 50, 50], [12, 22, 52, 52]], [0.9, 0.9])
    before = image.clone()
    assert draw_detections(image, found).tobytes() == draw_detections(image, found).tobytes()
    assert torch.equal(image, before)
    large = torch.zeros(3, 720, 720, dtype=torch.uint8)
    draw_detections(large, found)
    assert large.max() == 0


def test_a_contact_sheet_holds_every_picture_whole() -> None:
    sizes = [(300, 200), (100, 200), (200, 200), (400, 100), (50, 50)]
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    sheet = contact_sheet(pictures, columns=2, gap=10)
    assert sheet.width == 2 * 400 + 3 * 10
    for (width, height), colour in zip(sizes, colours, strict=True):
        rows, columns = np.nonzero((_pixels(sheet) == np.array(colour)).all(-1))
        shown = (columns.max() - columns.min() + 1) / (rows.max() - rows.min() + 1)
        assert shown == pytest.approx(width / height, rel=0.05)
    assert contact_sheet(pictures[:1], columns=3, gap=0).size == (300, 200)


def test_pixels_only_are_written() -> None:
    photo = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif, comment=b"secret place")
    sheet = contact_sheet([Image.open(buffer)])
    for form in ("PNG", "JPEG"):
        written = io.BytesIO()
        sheet.save(written, form)
        assert b"secret place" not in written.getvalue()
        assert not Image.open(written).getexif()


def test_real_photographs(real_data: Path) -> None:
    files = sorted((real_data / "coco_tiny" / "images").glob("*.jpg"))[:2]
    for file in files:
        pixels = np.array(Image.open(file).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        height, width = pixels.shape[:2]
        found = _found([[width * 0.1, height * 0.2, width * 0.5, height * 0.8]], [0.9])
        picture = draw_detections(image, found, classes=["thing"])
        assert max(picture.size) == max(LONG_SIDE, width, height)
        assert 0.005 < _share(picture, colour_of(0)) < 0.1
