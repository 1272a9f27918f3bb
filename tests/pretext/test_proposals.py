"""Where proposed boxes come from, which are taken, and what is said where none can be had."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from downstream.annotations.shapes import write_shapes
from pretext.detreg import DETReg
from pretext.networks import fingerprint_of_weights, resting_network
from pretext.normalised_cut import objects_of
from pretext.proposals import GivenBoxes, Proposals, selective_search
from ssldet.boxes import pairwise_iou
from ssldet.chance import generator
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.engine.sources import prepared
from ssldet.errors import ConfigError, DataError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import check
from ssldet.source import Source
from ssldet.types import Sample, Targets

RULES = ImageRules(min_side=17, max_pixels=1_000_000)
HEIGHT, WIDTH = 60, 90
OBJECTS = torch.tensor([[12.0, 9.0, 39.0, 30.0], [51.0, 30.0, 81.0, 54.0]])


def scene() -> Sample:
    image = torch.full((3, HEIGHT, WIDTH), 40, dtype=torch.uint8)
    for (x0, y0, x1, y1), colour in zip(OBJECTS.int().tolist(), ((220, 30, 30), (30, 60, 230)), strict=True):
        image[:, y0:y1, x0:x1] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    none = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=none, key="one.png", original_size=(HEIGHT, WIDTH))


def test_selective_search_finds_what_differs_from_its_surroundings() -> None:
    boxes = Proposals().propose(scene(), generator(0))
    overlaps = pairwise_iou(OBJECTS, boxes).max(1).values
    assert overlaps.min() > 0.8, overlaps


def test_selective_search_is_a_function_of_the_pixels_and_its_order_of_the_generator() -> None:
    first, again = selective_search(scene().image), selective_search(scene().image)
    assert torch.equal(first, again)
    areas = (first[:, 2:] - first[:, :2]).prod(1)
    assert torch.equal(areas, areas.sort(descending=True).values)
    noisy = replace(scene(), image=torch.randint(0, 255, (3, HEIGHT, WIDTH), generator=generator(5)).to(torch.uint8))
    proposals = Proposals(count=8)
    one, same, other = (proposals.propose(noisy, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(one) == 8


def test_large_or_small_regions_come_first_as_in_the_paper_or_in_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    noise = torch.randint(0, 255, (1, 3, 32, 32), generator=generator(5)).float()
    pixels = F.interpolate(noise, (128, 128), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
    image = replace(scene(), image=pixels, original_size=(128, 128))

    def area(boxes: torch.Tensor) -> float:
        return float((boxes[:, 2:] - boxes[:, :2]).prod(1).median())

    def drawn(first: str) -> float:
        proposals = Proposals(count=20, first=first)  # type: ignore[arg-type]
        return fmean(area(proposals.propose(image, generator(seed))) for seed in range(10))

    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[:, :, ::-1]))
    search.switchToSelectiveSearchFast()
    places = torch.from_numpy(np.asarray(search.process(), dtype=np.float32))[:20]
    of_opencv = area(torch.cat([places[:, :2], places[:, :2] + places[:, 2:]], dim=1))
    assert of_opencv < drawn("largest") / 4
    assert drawn("smallest") < drawn("largest") / 4


def test_boxes_of_a_file_follow_a_jpeg_that_was_decoded_at_half_its_size() -> None:
    given = GivenBoxes(boxes=torch.tensor([[40.0, 20.0, 80.0, 60.0]]))
    whole = replace(scene(), problem=given)
    half = replace(whole, image=whole.image[:, ::2, ::2])
    proposals = Proposals(method="file", file="boxes.json")
    (on_disk,) = proposals.propose(whole, generator(0))
    (on_half,) = proposals.propose(half, generator(0))
    assert torch.equal(on_half, on_disk / 2)


def test_an_image_of_one_colour_has_one_region_at_most() -> None:
    flat = replace(scene(), image=torch.full((3, 33, 44), 9, dtype=torch.uint8))
    assert len(Proposals().propose(flat, generator(0))) <= 1
    assert len(Proposals(largest_share=0.9).propose(flat, generator(0))) == 0


@pytest.mark.parametrize("choice", ["top_k", "random", "importance"])
def test_boxes_keep_to_the_limits_of_number_and_size(choice: str) -> None:
    proposals = Proposals(method="random", count=200, smallest_share=0.2, largest_share=0.5)
    boxes = proposals.propose(scene(), generator(3))
    sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([WIDTH, HEIGHT])
    assert len(boxes) == 200
    assert sides.min() >= 0.2 - 1e-6
    assert sides.max() <= 0.5 + 1e-6
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= torch.tensor([WIDTH, HEIGHT])).all()
    searched = Proposals(count=3, choice=choice, largest_share=0.6).propose(scene(), generator(3))  # type: ignore[arg-type]
    assert 0 < len(searched) <= 3


def test_importance_prefers_what_comes_early_and_chance_does_not() -> None:
    early = {}
    for choice in ("random", "importance"):
        proposals = Proposals(count=10, choice=choice)  # type: ignore[arg-type]
        drawn = torch.cat([proposals._choose(100, generator(seed)) for seed in range(200)])
        assert drawn.max() > 80
        early[choice] = float((drawn < 50).float().mean())
    assert abs(early["random"] - 0.5) < 0.05
    assert early["importance"] > 0.7


def test_objectness_cuts_out_what_stands_apart_from_the_rest() -> None:
    cells = torch.randn(16, generator=generator(1)).view(16, 1, 1).repeat(1, 12, 18)
    thing, other = torch.randn(2, 16, generator=generator(2))
    cells[:, 2:7, 3:8] = thing[:, None, None]
    cells[:, 8:11, 12:17] = other[:, None, None]
    cells += 0.05 * torch.randn(cells.shape, generator=generator(3))
    boxes = objects_of(cells, similarity=0.2, count=3)
    true = torch.tensor([[3, 2, 8, 7], [12, 8, 17, 11]]) / torch.tensor([18, 12, 18, 12])
    assert pairwise_iou(true, boxes).max(1).values.min() > 0.9
    assert len(objects_of(torch.ones(4, 5, 6), similarity=0.2, count=3)) == 0


def test_objectness_needs_no_more_than_a_backbone_and_leaves_the_seed_alone() -> None:
    proposals = Proposals(method="objectness", backbone=BackboneConfig(name="tiny"), count=4, side=96)
    torch.manual_seed(7)
    boxes = proposals.propose(scene(), generator(0))
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(boxes, proposals.propose(scene(), generator(9)))
    assert pairwise_iou(OBJECTS, boxes).max() > 0.3


def test_found_boxes_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = Proposals(), Proposals(cache=str(tmp_path / "boxes"))
    expected = plain.propose(scene(), generator(4))
    assert torch.equal(kept.propose(scene(), generator(4)), expected)
    monkeypatch.setattr("pretext.proposals.selective_search", lambda image: pytest.fail("searched again"))
    assert torch.equal(kept.propose(scene(), generator(4)), expected)
    files = list((tmp_path / "boxes").rglob("*.boxes"))
    assert len(files) == 1
    files[0].write_bytes(b"cut")
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        kept.propose(scene(), generator(4))


def test_kept_boxes_of_a_network_depend_on_their_number_and_on_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = BackboneConfig(name="tiny")
    one, many = (
        Proposals(method="objectness", backbone=network, count=count, side=64, cache=str(tmp_path / "boxes"))
        for count in (1, 5)
    )
    assert len(one.propose(scene(), generator(0))) == 1
    assert len(many.propose(scene(), generator(0))) == len(replace(many, cache=None).propose(scene(), generator(0)))
    kept = len(list((tmp_path / "boxes").rglob("*.boxes")))
    other = resting_network(replace(network, tiny_channels=(8, 16, 32)))
    monkeypatch.setattr("pretext.networks.resting_network", lambda config: other)
    fingerprint_of_weights.cache_clear()
    many.propose(scene(), generator(0))
    fingerprint_of_weights.cache_clear()
    assert len(list((tmp_path / "boxes").rglob("*.boxes"))) == kept + 1


def images(tmp_path: Path) -> Source:
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(folder / name)
    return open_source([str(tmp_path / "images")], RULES)


def test_boxes_of_a_file_belong_to_their_images(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    entries = [
        {"image_id": "deep/a.png", "bbox": [1, 2, 10, 20], "score": 0.2},
        {"image_id": "deep/a.png", "bbox": [5, 6, 30, 40], "score": 0.9},
        {"image_id": 7, "file_name": "b.png", "bbox": [0, 0, 5, 5]},
    ]
    file.write_text(json.dumps(entries))
    proposals = Proposals(method="file", file=str(file))
    source = proposals.within(images(tmp_path))
    boxes = {Path(source[i].key).name: proposals.propose(source[i], generator(0)).tolist() for i in range(3)}
    assert boxes == {"a.png": [[5, 6, 35, 40], [1, 2, 11, 22]], "b.png": [[0, 0, 5, 5]], "c.png": []}
    as_set = {
        "images": [{"id": 3, "file_name": "c.png"}],
        "annotations": [{"image_id": 3, "bbox": [1, 1, 2, 2], "id": 1, "category_id": 1}],
    }
    file.write_text(json.dumps(as_set))
    source = proposals.within(images(tmp_path))
    assert [len(source.draw(index, generator(0)).problem.boxes) for index in range(3)] == [0, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "not JSON"),
        ('"x"', "neither a list"),
        ('[{"image_id": "deep/a.png", "bbox": [1, 2, -3, 4]}]', "1 of 1 entries are no boxes, the first at /0"),
        ('[{"image_id": "deep/a.png", "bbox": [1, 2, NaN, 4]}]', "no boxes"),
        ('[{"image_id": "A.png", "bbox": [1, 2, 3, 4]}]', "none of the 3 images"),
        ('[{"image_id": "a.png", "bbox": [0.1, 0.2, 0.3, 0.4]}]', "as if they were shares of their images"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        Proposals(method="file", file=str(file)).within(images(tmp_path))


def test_boxes_find_labelled_images_by_the_names_of_their_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = write_shapes(tmp_path / "scenes", images=4, seed=1)
    spec = f"coco:{labels}:{tmp_path / 'scenes' / 'images'}"
    proposals = Proposals(method="file", file=str(labels))
    source = prepared(DETReg(proposals=proposals), open_source([spec], RULES))
    assert all(len(proposals.propose(source[index], generator(0))) for index in range(4))
    assert not caplog.text
    document = json.loads(labels.read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == document["images"][0]["id"]]
    labels.write_text(json.dumps(document))
    proposals.within(open_source([str(tmp_path / "scenes" / "images")], RULES))
    assert "has no box for 3 of 4 images" in caplog.text


def test_a_name_that_fits_several_images_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (40, 50), "red" if folder == "a" else "blue").save(tmp_path / "images" / folder / "x.png")
    source, file = open_source([str(tmp_path / "images")], RULES), tmp_path / "boxes.json"
    file.write_text('[{"file_name": "x.png", "bbox": [1, 2, 30, 40]}]')
    with pytest.raises(DataError, match=r"'x.png' fits 2 images, such as '.*a/x.png'; state"):
        Proposals(method="file", file=str(file)).within(source)
    file.write_text('[{"file_name": "b/x.png", "bbox": [1, 2, 30, 40]}]')
    found = Proposals(method="file", file=str(file)).within(source)
    assert [len(found[index].problem.boxes) for index in range(2)] == [0, 1]  # type: ignore[union-attr]


def test_images_that_no_file_describes_have_no_boxes() -> None:
    assert len(Proposals(method="file", file="boxes.json").propose(scene(), generator(0))) == 0


def test_a_file_is_no_place_to_keep_boxes(tmp_path: Path) -> None:
    (tmp_path / "boxes").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        check(Proposals(cache=str(tmp_path / "boxes")))


def test_contradictions_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        check(Proposals(method="file", backbone=BackboneConfig(name="tiny"), smallest_share=0.9, largest_share=0.2))
    assert len(raised.value.problems) == 3


def test_the_search_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretext.proposals.find_spec", lambda name: None)
    assert "pip install 'ssldet[proposals]'" in Proposals().problems()[0]
