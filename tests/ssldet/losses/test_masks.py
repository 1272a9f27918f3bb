"""Losses of masks: those of the authors where padding counts, and without a trace of padding where it does not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssldet.losses.criterion import Criterion
from ssldet.losses.masks import MaskDiceTerm, MaskFocalTerm
from ssldet.losses.terms import ClassTerm
from ssldet.matching import Matcher
from ssldet.types import EncodedImages, Losses, Matches, Predictions, Targets

ORACLE = Path(__file__).parents[2] / "oracles" / "detr-mask-losses.json"
LAYERS, QUERIES = 2, 4


def logits() -> Tensor:
    """Three masks of 3 x 5 cells on a canvas of 12 x 20 pixels, as the recorder drew them."""
    return (torch.sin(torch.arange(45).float() * 1.7).view(3, 3, 5) * 3).requires_grad_()


def truth(canvas: tuple[int, int] = (12, 20)) -> list[Targets]:
    masks = torch.zeros(3, *canvas, dtype=torch.bool)
    masks[0, 2:9, 3:15], masks[1, :4, 10:20], masks[2, 1:7, 2:11] = True, True, True
    boxes = torch.rand(3, 4) * 0.3 + 0.2
    labels = torch.tensor([1, 0, 1])
    return [
        Targets(boxes=boxes[chosen], labels=labels[chosen], masks=masks[chosen]) for chosen in (slice(2), slice(2, 3))
    ]


def predictions(padding: Tensor | None = None) -> Predictions:
    encoded = EncodedImages(
        cells=torch.zeros(2, 1, 1, 1), encoded=torch.zeros(2, 1, 1), padding=None, finer=[], canvas=padding
    )
    return Predictions(
        logits=torch.randn(LAYERS, 2, QUERIES, 3),
        boxes=torch.rand(LAYERS, 2, QUERIES, 4) * 0.3 + 0.2,
        states=torch.zeros(LAYERS, 2, QUERIES, 1),
        encoded_images=encoded,
    )


class Fixed(Matcher):
    """Answers of both layers, the last ones not at the end."""

    def __call__(self, predictions: Predictions, targets: list[Targets]) -> Matches:
        return Matches(
            layer=torch.tensor([1, 1, 0, 0, 0, 1]),
            image=torch.tensor([0, 0, 0, 0, 1, 1]),
            query=torch.tensor([3, 0, 1, 2, 0, 2]),
            target=torch.tensor([0, 1, 0, 1, 2, 2]),
        )


def compared(drawn: Tensor, found: Predictions, targets: list[Targets], *, padding: bool = False) -> Losses:
    asked = []

    def draw(_: Predictions, image: Tensor, query: Tensor) -> Tensor:
        asked.append((image.tolist(), query.tolist()))
        return drawn

    terms = (ClassTerm(), MaskFocalTerm(padding=padding), MaskDiceTerm(padding=padding))
    losses = Criterion(Fixed(), terms, draw=draw)(found, targets)
    assert asked == [([0, 0, 1], [3, 0, 2])], "masks are drawn once, for the matches of the last layer"
    return losses


def test_with_padding_counted_the_losses_are_the_authors() -> None:
    recorded = json.loads(ORACLE.read_text())
    padding = torch.zeros(2, 12, 20, dtype=torch.bool)
    padding[1, 8:], padding[1, :, 14:] = True, True
    drawn = logits()
    losses = compared(drawn, predictions(padding), truth(), padding=True)
    for name in ("mask_focal", "mask_dice"):
        # Three targets here, their functions were given another number to divide by.
        assert losses.terms[name][-1].item() * 3 / recorded["num_boxes"] == pytest.approx(recorded[name], rel=1e-5)
        assert losses.terms[name][:-1].eq(0).all()
    losses.total.backward()
    assert drawn.grad is not None
    assert drawn.grad.flatten(1).abs().sum(1).gt(0).all()
    without = compared(logits(), predictions(padding), truth())
    assert abs(without.terms["mask_focal"][-1] - losses.terms["mask_focal"][-1]) > 1e-3


def test_padding_has_no_part() -> None:
    """A canvas twice as large changes nothing, whatever the masks say out there."""
    alone = compared(logits(), predictions(), truth())
    padding = torch.ones(2, 24, 40, dtype=torch.bool)
    padding[:, :12, :20] = False
    wide = torch.full((3, 6, 10), 5.0)
    # The outermost cells are repeated, as the edge of a smaller canvas would be.
    wide[:, :3, :5], wide[:, 3, :5], wide[:, :3, 5] = logits(), logits()[:, 2], logits()[:, :, 4]
    wide[:, 3, 5] = logits()[:, 2, 4]
    larger = compared(wide, predictions(padding), truth((24, 40)))
    counted = compared(wide, predictions(padding), truth((24, 40)), padding=True)
    for name in ("mask_focal", "mask_dice"):
        torch.testing.assert_close(larger.terms[name], alone.terms[name], rtol=1e-5, atol=1e-6)
        assert abs(counted.terms[name][-1] - alone.terms[name][-1]) > 0.01


@pytest.mark.parametrize("term", [MaskFocalTerm(), MaskDiceTerm()])
def test_no_match_is_zero_and_can_be_learned_from(term: Callable[..., Tensor]) -> None:
    none = torch.zeros(0, dtype=torch.long)
    drawn = torch.zeros(0, 12, 20, requires_grad=True)
    found = replace(predictions(), masks=drawn)
    targets = Targets(boxes=torch.zeros(0, 4), labels=none, masks=torch.zeros(0, 12, 20, dtype=torch.bool))
    loss = term(found, targets, Matches(layer=none, image=none, query=none, target=none), 1.0)
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert drawn.grad is not None


def test_terms_of_masks_say_what_they_need() -> None:
    found, targets = predictions(), truth()
    with pytest.raises(ValueError, match="need targets with masks"):
        MaskDiceTerm()(found, targets[0], Fixed()(found, targets), 1.0)
