"""A trained model hands over to any detector, with its class head by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ssldet
from downstream.detection import Detection
from downstream.export.detr import export
from downstream.panoptic import Panoptic
from ssldet.errors import CheckpointError
from ssldet.weights.coco import coco_numbering
from ssldet.weights.detr import to_detr
from tests.models import SMALL_DETR

COCO = replace(
    SMALL_DETR, num_classes=91, num_queries=5, width=16, heads=2, decoder_layers=1, feedforward=8, pre_norm=False
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as DETR's authors publish them: 92 rows by category id, and no word about any class."""
    path = tmp_path_factory.mktemp("published") / "detr.pth"
    # Other weights than each test's own, whatever test ran before.
    torch.manual_seed(1)
    export(Detection().objective(COCO.build()), {}, path)
    document = torch.load(path, weights_only=True)
    torch.save({"model": document["model"]}, path)
    return path


def without_names(path: Path, num_classes: int) -> Path:
    document = torch.load(path, weights_only=True)
    document["model"] |= {
        f"class_embed.{part}": document["model"][f"class_embed.{part}"][: num_classes + 1]
        for part in ("weight", "bias")
    }
    out = path.with_name(f"detr-{num_classes}.pth")
    torch.save({"model": document["model"]}, out)
    return out


def heads_of(path: Path, classes: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor, ssldet.DETR]:
    detector = replace(COCO, num_classes=len(classes)).build()
    ssldet.transfer(path, detector, classes=classes)
    return torch.load(path, weights_only=True)["model"]["class_embed.weight"], detector.class_head.weight, detector


def test_raw_category_ids_become_the_classes_of_the_data(published: Path) -> None:
    names, ids = coco_numbering(80)
    theirs, ours, _ = heads_of(published, names)
    assert torch.equal(ours, theirs[[*ids, 91]])


def test_vocs_words_are_found_among_cocos(published: Path) -> None:
    theirs, ours, _ = heads_of(published, ("sofa", "pottedplant", "unicorn"))
    assert torch.equal(ours[[0, 1, 3]], theirs[[63, 64, 91]])
    assert not torch.equal(ours[2], theirs[2])


def test_a_head_that_nobody_knows_the_classes_of_starts_anew(published: Path) -> None:
    path = without_names(published, 20)
    detector = replace(COCO, num_classes=2).build()
    before = detector.class_head.weight.detach().clone()
    report = ssldet.transfer(path, detector, classes=("cat", "dog"))
    assert torch.equal(detector.class_head.weight, before)
    assert report.count("reshaped")[0] == 2
    assert report.classes is None


def test_sections_are_the_callers_choice_and_must_arrive_whole(published: Path) -> None:
    detector = replace(COCO, num_classes=2).build()
    report = ssldet.transfer(published, detector, ("backbone", "encoder"))
    assert {row.section for row in report.rows if row.outcome == "loaded"} == {"backbone", "encoder"}
    wider = replace(COCO, num_classes=2, feedforward=12).build()
    with pytest.raises(CheckpointError, match=r"encoder.layers.0.linear1.weight has shape"):
        ssldet.transfer(published, wider, ("backbone", "encoder"))


def test_a_published_detector_is_told_by_its_names(published: Path) -> None:
    opened = ssldet.verbs.opening.open_model(published)
    assert opened.classes[1] == "person"
    assert opened.info["category_ids"][90] == 90


def test_a_published_detector_with_masks_tells_pixels_apart(tmp_path: Path) -> None:
    config = replace(COCO, num_classes=250, width=32, heads=8, masks=True)
    state = Panoptic().objective(config.build()).state_dict()
    torch.save({"model": to_detr(state)}, tmp_path / "panoptic.pth")
    opened = ssldet.verbs.opening.open_model(tmp_path / "panoptic.pth")
    assert isinstance(opened.task, Panoptic)
    assert len(opened.task.stuff) == 53
    assert {opened.classes[label] for label in opened.task.stuff} >= {"sky-other-merged", "road"}
    again = replace(config, num_classes=2).build()
    report = ssldet.transfer(opened, again, classes=("person", "road"))
    assert {row.outcome for row in report.rows if row.section == "mask_head"} == {"loaded"}


@pytest.mark.parametrize(
    ("queries", "says"),
    [(3, "queries: the first 3 of 5 kept, the other 2 left behind"), (8, "queries: 5 kept, 3 new ones with fresh")],
)
def test_another_number_of_queries_is_cut_or_extended_and_said(published: Path, queries: int, says: str) -> None:
    theirs = ssldet.load(published).queries.embedding
    detector = replace(COCO, num_queries=queries).build()
    fresh = detector.queries.embedding.detach().clone()
    report = ssldet.transfer(published, detector)
    both = min(queries, 5)
    assert torch.equal(detector.queries.embedding[:both], theirs[:both])
    assert torch.equal(detector.queries.embedding[both:], fresh[both:])
    assert says in str(report)
    assert report.to_json()["queries"] == {"theirs": 5, "ours": queries}
    assert [row.outcome for row in report.rows if row.section == "queries"] == ["reshaped"]
