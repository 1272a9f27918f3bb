"""The mathematics of DETReg as it is put together here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from downstream.annotations.shapes import write_shapes
from pretext.detreg import DETReg, EmbeddingDistance, RegionDetection
from pretext.proposals import Proposals
from pretext.recipes.detreg import tiny
from pretext.region_recall import RegionRecall
from ssldet import pretrain
from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.data.problems import same
from ssldet.detectors.base import DetectorConfig
from ssldet.errors import DataError, DivergedError
from ssldet.task import learning_sections
from ssldet.types import Batch, Detections, Matches, Predictions, Sample, Targets
from tests.models import SMALL_DEFORMABLE_DETR


def photo(seed: int, height: int = 70, width: int = 90) -> Sample:
    coarse = torch.rand(1, 3, 5, 7, generator=generator("photo", seed))
    image = torch.nn.functional.interpolate(coarse, (height, width)).mul(255).to(torch.uint8)[0]
    none = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=none, key=str(seed), original_size=(height, width))


TASK = tiny().task
assert isinstance(TASK, DETReg)


def objective_of(task: DETReg, config: DetectorConfig | None = None) -> RegionDetection:
    torch.manual_seed(0)
    detector = (config or tiny().detector).build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: DETReg, *, training: bool = True) -> Batch:
    views = task.views(training=training)
    return collate([views(photo(number), generator(number)) for number in range(3)])


def test_the_pixels_of_a_region_are_those_of_the_image_under_its_box() -> None:
    task = replace(TASK, flip=0.0, proposals=replace(TASK.proposals, method="random", count=6))
    for seed in range(5):
        sample = task.views()(photo(seed, 64, 64), generator(seed))
        assert len(sample.targets) == 6
        for box, pixels in zip(sample.targets.boxes, sample.problem.pixels, strict=True):  # type: ignore[union-attr]
            cx, cy, w, h = (box * 64).tolist()
            top, bottom = int(cy - h / 2), -int(-(cy + h / 2) // 1)
            left, right = int(cx - w / 2), -int(-(cx + w / 2) // 1)
            inside = sample.image[:, top:bottom, left:right].float().mean((1, 2))
            torch.testing.assert_close(pixels.float().mean((1, 2)), inside, atol=3.0, rtol=0)


def test_crops_leave_regions_out_and_never_mix_them_up() -> None:
    framed = replace(TASK, flip=0.0, crop=1.0, crop_scales=(64,), crop_range=(30, 40))
    task = replace(framed, proposals=Proposals(method="random", count=9))
    views = task.views()
    plain = replace(task, crop=0.0).views()
    lost = 0
    for seed in range(10):
        cropped, whole = views(photo(seed), generator(seed)), plain(photo(seed), generator(seed))
        lost += 9 - len(cropped.targets)
        kept = {row.numpy().tobytes() for row in whole.problem.pixels}  # type: ignore[union-attr]
        count = len(cropped.targets)
        assert all(row.numpy().tobytes() in kept for row in cropped.problem.pixels[:count])  # type: ignore[union-attr]
        assert not cropped.problem.pixels[count:].any()  # type: ignore[union-attr]
    assert lost > 0


@pytest.mark.parametrize("config", [None, replace(SMALL_DEFORMABLE_DETR, num_classes=1)], ids=["detr", "deformable"])
@pytest.mark.parametrize("level", [1, 3])
def test_the_embedding_is_the_mean_of_the_chosen_level(config: DetectorConfig | None, level: int) -> None:
    task = replace(TASK, embedding_level=level)
    objective, batch = objective_of(task, config), batch_of(task)
    embeddings = objective.describe(batch)
    assert len(embeddings) == sum(map(len, batch.targets))
    second = len(batch.targets[0])
    pixels = objective.detector.normalise(batch.problem.pixels[1, :1])  # type: ignore[union-attr]
    levels = objective.detector.levels(pixels)
    expected = levels[max(0, len(levels) - level)].mean((2, 3))[0]
    torch.testing.assert_close(embeddings[second], expected, atol=1e-5, rtol=1e-4)
    losses = objective(batch)
    assert losses.total.isfinite()
    assert "embedding" in losses.terms


def test_the_embedding_counts_in_the_last_layer_only() -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 2, 5, 4)
    predictions = Predictions(logits=torch.zeros(3, 2, 5, 2), boxes=torch.rand(3, 2, 5, 4), states=states)
    layer = torch.tensor([0, 1, 2, 2, 2])
    image, query, target = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 0, 0, 1, 2])
    matches = Matches(layer=layer, image=image, query=query, target=target)
    embeddings = torch.randn(3, 7)
    targets = Targets(boxes=torch.rand(3, 4), labels=torch.zeros(3, dtype=torch.int64), embeddings=embeddings)
    head = torch.nn.Linear(4, 7)
    values = EmbeddingDistance(head=head)(predictions, targets, matches, 3.0)
    named = torch.stack([head(states[2, 0, 2]), head(states[2, 1, 3]), head(states[2, 1, 0])])
    assert values[:2].tolist() == [0, 0]
    torch.testing.assert_close(values[2], torch.nn.functional.l1_loss(named, embeddings))


def test_images_without_a_region_are_learned_from_too() -> None:
    flat = replace(photo(0), image=torch.full((3, 70, 90), 7, dtype=torch.uint8))
    views = TASK.views()
    batch = collate([views(flat, generator(0)), views(flat, generator(1))])
    assert [len(targets) for targets in batch.targets] == [0, 0]
    losses = objective_of(TASK)(batch)
    assert losses.total.isfinite()
    assert float(losses.terms["embedding"].detach().sum()) == 0


def test_recall_counts_the_most_confident_answers() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.3, 0.4], [0.75, 0.5, 0.3, 0.4]])
    batch = batch_of(TASK, training=False)
    targets = Targets(boxes=boxes, labels=torch.zeros(2, dtype=torch.int64))
    one = replace(batch, targets=[targets] * 3)
    height, width = 70, 90
    scale = torch.tensor([width, height, width, height])
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * scale
    wrong = torch.tensor([[0.0, 0.0, 3.0, 3.0]]).repeat(20, 1)
    scores = torch.cat([torch.tensor([0.9, 0.1]), torch.full((20,), 0.5)])
    answers = Detections(boxes=torch.cat([corners, wrong]), scores=scores, labels=torch.zeros(22, dtype=torch.int64))
    recall = RegionRecall()
    recall.update([answers] * 3, one)
    figures = recall.results()
    assert (figures["region_recall_10"], figures["region_recall_30"]) == (0.5, 1.0)
    assert 0 <= figures["region_recall_30_chance"] < 1
    assert not [name for name in figures if name.startswith(("patch_recall", "object_recall"))], "images had no labels"
    with pytest.raises(DataError, match="no region"):
        RegionRecall().results()
    with pytest.raises(DivergedError):
        recall.update([replace(answers, boxes=answers.boxes * float("nan"))] * 3, one)


def test_labels_are_measured_on_and_not_learned_from() -> None:
    task = replace(TASK, flip=0.0, crop=0.0)
    image = photo(0)
    candidates = replace(task.proposals, count=100).propose(image, generator(1))
    size = torch.tensor([90, 70, 90, 70])
    boxes = torch.cat([torch.tensor([[0.5, 0.5, 0.4, 0.4]]), xyxy_to_cxcywh(candidates[12:13] / size)])
    near = Targets(boxes=boxes, labels=torch.tensor([3, 0]))
    plain, labelled = image, replace(image, targets=near)
    assert same(task.views()(plain, generator(1)), task.views()(labelled, generator(1)))
    views = task.views(training=False)
    recall = RegionRecall()
    answers = Detections(boxes=candidates[:1], scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.int64))
    recall.update([answers] * 2, collate([views(labelled, generator(1)), views(plain, generator(1))]))
    figures, covered = recall.results(), pairwise_iou(cxcywh_to_xyxy(near.boxes) * size, candidates) >= 0.5
    assert covered[1, 12]
    for number in (10, 30, 100):
        expected = float(covered[:, :number].any(1).float().mean())
        assert figures[f"patch_recall_{number}"] == pytest.approx(expected)
    assert figures["object_recall_10"] == pytest.approx(float(covered[:, :1].any(1).float().mean()))


def test_a_run_measures_both_recalls_of_labelled_objects(tmp_path: Path) -> None:
    labels = write_shapes(tmp_path / "scenes", images=6, seed=1)
    spec = f"coco:{labels}:{tmp_path / 'scenes' / 'images'}"
    changes = {"data.batch_size": 2, "data.workers": 0}
    done = pretrain(spec, val=spec, recipe="detreg/tiny", steps=1, out=tmp_path / "run", overrides=changes)
    wanted = {f"{name}_recall_{number}" for name in ("region", "object", "patch") for number in (10, 30, 100)}
    assert wanted <= done.results.keys()
    assert done.results["patch_recall_100"] > 0.5
