"""The geometry and the mathematics of Siamese DETR as it is put together here."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretext.recipes.siamese_detr import tiny
from pretext.siamese_detr import CrossViewDetection, SiameseDETR
from pretext.two_views import common_regions, draw_two_views
from ssldet.boxes import cxcywh_to_xyxy
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.data.photometric import Jitter
from ssldet.detectors.base import DetectorConfig
from ssldet.nn.padding import mean_over_cells
from ssldet.task import learning_sections
from ssldet.types import Batch, Sample, Targets
from tests.models import SMALL_DEFORMABLE_DETR

TASK = tiny().task
assert isinstance(TASK, SiameseDETR)


def photo(seed: int, height: int = 90, width: int = 120) -> Sample:
    """Return an image whose red and green say where each pixel lies."""
    image = torch.zeros(3, height, width)
    image[0] = torch.linspace(0, 255, width)
    image[1] = torch.linspace(0, 255, height)[:, None]
    image[2] = 255 * torch.rand(1, 1, 4, 6, generator=generator("photo", seed))[0, 0].repeat_interleave(
        -(-height // 4), 0
    )[:height].repeat_interleave(width // 6, 1)
    none = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image.to(torch.uint8), targets=none, key=str(seed), original_size=(height, width))


def objective_of(task: SiameseDETR, config: DetectorConfig | None = None) -> CrossViewDetection:
    torch.manual_seed(0)
    detector = (config or tiny().detector).build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: SiameseDETR, *, training: bool = True) -> Batch:
    views = task.views(training=training)
    return collate([views(photo(number, 80 + 13 * number), generator(number)) for number in range(3)])


def test_two_views_overlap_enough_and_keep_to_their_area() -> None:
    for seed in range(100):
        one, other = draw_two_views((90, 120), (0.5, 1.0), 0.5, generator(seed))
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
        across = min(one[2], other[2]) - max(one[0], other[0])
        down = min(one[3], other[3]) - max(one[1], other[1])
        assert across * down >= 0.5 * (sum(areas) - across * down)
        assert all(0.45 * 90 * 120 <= area <= 90 * 120 for area in areas)
        assert all(0 <= x0 < x1 <= 120 and 0 <= y0 < y1 <= 90 for x0, y0, x1, y1 in (one, other))
    assert draw_two_views((50, 60), (0.01, 0.01), 0.9, generator(0)) == ((0, 0, 60, 50), (0, 0, 60, 50))


SOME = (torch.zeros(0, 4), torch.tensor([[5.0, 5, 60, 60], [0, 0, 3, 3]]), torch.rand(40, 4, generator=generator(8)))


@pytest.mark.parametrize("boxes", SOME, ids=["none", "one of two", "many"])
def test_regions_are_inside_both_views_and_as_many_as_wanted(boxes: torch.Tensor) -> None:
    if len(boxes) == 40:
        boxes = torch.cat([boxes[:, :2] * 40, 50 + boxes[:, 2:] * 50], dim=1)
    one, other = (10, 4, 90, 70), (30, 0, 110, 60)
    regions = common_regions(boxes, one, other, 6, 0.05, generator(1))
    assert regions.shape == (6, 4)
    assert regions[0].tolist() == [30, 4, 90, 60]
    assert (regions[:, :2] >= torch.tensor([30, 4])).all()
    assert (regions[:, 2:] <= torch.tensor([90, 60])).all()
    areas = (regions[:, 2:] - regions[:, :2]).prod(1)
    assert (areas >= 0.03 * 60 * 56).all()
    if len(boxes) == 2:
        overlap = (regions[1:, :2] - torch.tensor([30.0, 5.0])).abs().max()
        assert overlap <= 0.1 * 55
        assert len(regions[1:].unique(dim=0)) == 5


@pytest.mark.parametrize("training", [True, False])
def test_both_views_show_the_same_thing_inside_each_region(training: bool) -> None:
    task = replace(TASK, scales=(60, 100), max_size=200, jitter=Jitter(probability=0.0, grey=0.0, blur=0.0))
    for seed in range(12):
        first = task.views(training=training)(photo(0), generator(seed))
        second = first.problem.other  # type: ignore[union-attr]
        assert len(first.targets) == len(second.targets) == task.num_patches
        for box, other in zip(first.targets.boxes, second.targets.boxes, strict=True):
            for channel in (0, 1):
                here, there = (_centre(view.image, where)[channel] for view, where in ((first, box), (second, other)))
                assert abs(here - there) < 9, (seed, channel, here, there)


def _centre(image: torch.Tensor, box: torch.Tensor) -> list[float]:
    height, width = image.shape[1:]
    x, y = min(width - 1, int(box[0] * width)), min(height - 1, int(box[1] * height))
    return image[:, y, x].float().tolist()


@pytest.mark.parametrize("config", [None, replace(SMALL_DEFORMABLE_DETR, num_classes=1, num_queries=20, dropout=0.0)])
def test_losses_of_both_directions_are_averaged_and_the_views_compared(config: DetectorConfig | None) -> None:
    task = replace(TASK, disturbance=0.0)
    objective, batch = objective_of(task, config), batch_of(task)
    torch.manual_seed(1)
    losses = objective(batch)
    assert {"class", "box_l1", "box_giou", "reconstruction", "global"} <= set(losses.terms)
    pair = batch.problem
    forth = objective.ask(pair.other, objective.pool(batch))  # type: ignore[union-attr]
    back = objective.ask(batch, objective.pool(pair.other))  # type: ignore[union-attr]
    assert forth.image_states is not None
    assert back.image_states is not None
    projected = [objective.projector(some.image_states) for some in (forth, back)]
    predicted = [objective.predictor(some) for some in projected]
    expected = sum(
        0.5 * (2 - 2 * F.cosine_similarity(predicted[here], projected[1 - here], dim=1).mean()) for here in (0, 1)
    )
    torch.testing.assert_close(losses.terms["global"][0], 2 * expected / 2, rtol=1e-3, atol=1e-4)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in objective.projector.parameters() if parameter.requires_grad)


def test_the_target_of_the_agreement_gets_no_gradient() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    one = objective.ask(batch, objective.pool(batch))
    other = replace(one, image_states=one.image_states.detach().clone().requires_grad_(True))  # type: ignore[union-attr]
    assert other.image_states is not None
    predicted = objective.predictor(objective.projector(other.image_states))
    target = objective.projector(one.image_states).detach()
    expected = torch.autograd.grad(-F.cosine_similarity(predicted, target, dim=1).mean(), other.image_states)[0]
    found = torch.autograd.grad(objective._agreement(one, other), other.image_states)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_regions_are_pooled_from_their_place_in_their_image_and_not_from_padding() -> None:
    objective, batch = objective_of(replace(TASK, disturbance=0.0)).eval(), batch_of(TASK)
    objective.detector.patch_levels = lambda images: (images,)  # type: ignore[method-assign]
    objective.detector.normalise = lambda pixels, padding=None: pixels.float() / 255  # type: ignore[method-assign]
    pooled = objective.pool(batch)[-1]
    for number, targets in enumerate(batch.targets):
        height, width = batch.sizes[number].tolist()
        for box, vector in zip(cxcywh_to_xyxy(targets.boxes), pooled[number], strict=True):
            x0, y0, x1, y1 = (box * torch.tensor([width, height, width, height])).round().int().tolist()
            under = batch.images[number, :, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].float().mean((1, 2)) / 255
            torch.testing.assert_close(vector[:2], under[:2], atol=0.04, rtol=0)


def test_proposals_are_compared_with_the_regions_in_every_level_that_they_are_made_of() -> None:
    config = replace(SMALL_DEFORMABLE_DETR, num_queries=10, num_classes=2, refine_boxes=True, two_stage=True)
    objective, batch = objective_of(replace(TASK, disturbance=0.0), config).eval(), batch_of(TASK)
    pooled = objective.pool(batch)
    assert len(pooled) == SMALL_DEFORMABLE_DETR.backbone_levels > 1
    channels = objective.detector.level_channels[-len(pooled) :]
    assert [level.shape[-1] for level in pooled] == list(channels)
    everywhere, at_the_last = objective.ask(batch, pooled), objective.ask(batch, pooled[-1:])
    assert not torch.equal(everywhere.boxes, at_the_last.boxes)


def test_the_backbone_looks_once_at_each_view_and_at_its_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    backbone, seen = objective.detector.backbone, []
    compute = backbone._levels
    monkeypatch.setattr(backbone, "_levels", lambda images, count: seen.append(images.shape) or compute(images, count))
    assert objective(batch).total.isfinite()
    assert len(seen) == 4


def test_padding_does_not_count_in_the_mean_of_an_image() -> None:
    cells = torch.randn(2, 6, 4, generator=generator(3))
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 2:] = True
    expected = torch.stack([cells[0].mean(0), cells[1, :2].mean(0)])
    torch.testing.assert_close(mean_over_cells(cells, padding), expected)
    torch.testing.assert_close(mean_over_cells(cells), cells.mean(1))
