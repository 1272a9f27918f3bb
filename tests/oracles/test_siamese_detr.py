"""Regions of two views, their features and the losses of Siamese DETR are those of the authors' code.

The numbers were recorded on the CPU from Zx55/SiameseDETR at the commit that the record names: criterion and matcher of
both directions, the head that compares views, RoIAlign as it is set there, and the boxes of both views.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from pretext.recipes.siamese_detr import tiny
from pretext.siamese_detr import CrossViewDetection, SiameseDETR, _mean
from pretext.two_views import common_regions
from ssldet.boxes import cxcywh_to_xyxy, to_normalised
from ssldet.chance import generator
from ssldet.class_scores import SoftmaxScores
from ssldet.data.collate import collate
from ssldet.data.geometry import crop
from ssldet.losses.set_prediction import set_prediction
from ssldet.losses.terms import FeatureReconstruction
from ssldet.types import Predictions, Sample, Targets
from tests.oracles.named import uniform, weight
from tests.oracles.set_losses import Case, recorded, require_losses, require_matches

TASK = SiameseDETR()


@cache
def theirs() -> dict[str, Any]:
    return recorded("siamese-detr.json")


def objective() -> CrossViewDetection:
    run = tiny()
    assert isinstance(run.task, SiameseDETR)
    return run.task.objective(run.detector.build())


def test_losses_and_matches_of_both_directions() -> None:
    case = Case(**theirs()["case"])
    extra = [FeatureReconstruction(head=nn.Identity(), weight=TASK.region_weight)]
    criterion = set_prediction(TASK, no_object_weight=TASK.no_match_weight, scope=TASK.matching, extra=extra)
    losses = []
    for way in ("forth", "back"):
        predictions = case.predictions(f"siamese {way}", 3, SoftmaxScores())
        targets = case.wanted(f"siamese {way}", 1)
        losses.append(criterion(predictions, targets))
        require_losses(losses[-1], theirs()[way])
        require_matches(criterion, predictions, targets, theirs()[way])
    require_losses(_mean(*losses), theirs()["mean"])
    assert losses[0].weights == {"class": 1, "box_l1": 5, "box_giou": 2, "reconstruction": 3}


def test_what_the_encoder_says_of_both_views() -> None:
    """The loss and its gradient, with their projector, which has a layer and norms more than ours."""
    record, ours = theirs()["global"], objective().train()
    width = record["channels"]

    def norm() -> nn.BatchNorm1d:
        return nn.BatchNorm1d(width)

    def linear() -> nn.Linear:
        return nn.Linear(width, width)

    projector = nn.Sequential(linear(), norm(), nn.ReLU(), linear(), norm(), nn.ReLU(), linear(), norm())
    predictor = nn.Sequential(linear(), norm(), nn.ReLU(), linear())
    for name, part in (("projector", projector), ("predictor", predictor)):
        shapes = {key: value.shape for key, value in part.state_dict().items() if value.is_floating_point()}
        part.load_state_dict({key: weight(f"global {name}.mlp.{key}", shapes[key]) for key in shapes}, strict=False)
    ours.projector, ours.predictor = projector, predictor  # type: ignore[assignment]
    memory = [
        (uniform(f"memory {view}", 5, width, 3, 4) * 2 + uniform(f"memory of {view}", 5, width, 1, 1) * 2)
        .detach()
        .requires_grad_()
        for view in "ab"
    ]
    nothing, states = torch.zeros(1, 5, 2, 4), torch.zeros(1, 5, 2, width)
    said = [
        Predictions(logits=nothing, boxes=nothing, states=states, image_states=cells.mean((2, 3))) for cells in memory
    ]
    loss = ours._agreement(*said)
    loss.backward()
    torch.testing.assert_close(float(loss.detach()), record["loss"], rtol=1e-5, atol=1e-6)
    gradients = [float(cells.grad.abs().sum()) for cells in memory if cells.grad is not None]
    assert gradients == pytest.approx(record["gradients"], rel=1e-4)


def test_features_of_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their RoIAlign takes the corner of a cell for its middle, so that its regions lie half a cell before ours."""
    record, ours = theirs()["pooled"], objective().eval()
    cells = uniform("cells", 2, 6, 9, 12)
    monkeypatch.setattr(type(ours.detector), "patch_levels", lambda self, images: (cells,))
    image, half = torch.zeros(3, 9 * 32, 12 * 32, dtype=torch.uint8), 16
    samples = []
    for number, boxes in enumerate(record["boxes"]):
        moved = to_normalised(torch.tensor(boxes) + half, (9 * 32, 12 * 32))
        targets = Targets(boxes=moved, labels=torch.arange(len(boxes)))
        samples.append(Sample(image=image, targets=targets, key=str(number), original_size=(9 * 32, 12 * 32)))
    (pooled,) = ours.pool(collate(samples))
    torch.testing.assert_close(pooled, torch.tensor(record["features"]), rtol=1e-4, atol=1e-5)


def test_the_boxes_of_both_views() -> None:
    """All that both show, then the first proposals that are large enough there; none is cut here."""
    record = theirs()["boxes"]
    one, other = (tuple(record[view]) for view in ("one", "other"))
    given, count = torch.tensor(record["given"]), record["count"]
    regions = common_regions(given, one, other, count, record["smallest"], generator(0))
    image = torch.zeros(3, 70, 110, dtype=torch.uint8)
    targets = Targets(boxes=to_normalised(regions, (70, 110)), labels=torch.arange(count))
    sample = Sample(image=image, targets=targets, key="a", original_size=(70, 110))
    height, width = record["view"]
    for (left, top, right, bottom), name in ((one, "in_one"), (other, "in_other")):
        view = crop(sample, top, left, bottom - top, right - left)
        boxes = cxcywh_to_xyxy(view.targets.boxes) * torch.tensor([width, height] * 2)
        torch.testing.assert_close(boxes, torch.tensor(record[name]), rtol=0, atol=1e-3)
