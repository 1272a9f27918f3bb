from dataclasses import replace

import pytest
import torch

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.engine.checkpoint import transfer_sections
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import override
from tests.models import TINY_DETR

TINY = replace(TINY_DETR, num_queries=5, encoder_layers=1, decoder_layers=2, masks=True)


def build(**options: object) -> DETR:
    torch.manual_seed(1)
    return replace(TINY, **options).build().eval()  # type: ignore[arg-type]


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    images, padding = torch.randn(2, 3, 40, 64), torch.zeros(2, 40, 64, dtype=torch.bool)
    padding[1, 24:], padding[1, :, 40:] = True, True
    images[padding.unsqueeze(1).expand_as(images)] = 0
    return images, padding


def every(batch: int = 2, queries: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(batch * queries)
    return index // queries, index % queries


@pytest.mark.parametrize("softmax", ["per_head", "joint"])
def test_some_masks_are_those_of_all(softmax: str) -> None:
    detector, (images, padding) = build(mask_attention=softmax), pictures()
    assert detector.mask_attention is not None
    # Fresh queries look everywhere alike.
    detector.mask_attention.q_linear.weight.data *= 30
    predictions = detector(images, padding)
    masks = detector.masks(predictions, *every()).unflatten(0, (2, 5))
    assert masks.shape == (2, 5, 20, 32)
    image, query = torch.tensor([1, 0, 1, 1]), torch.tensor([4, 2, 0, 4])
    torch.testing.assert_close(detector.masks(predictions, image, query), masks[image, query], rtol=1e-5, atol=1e-5)
    assert (masks[:, 0] - masks[:, 1]).abs().max() > 1e-3
    assert detector.masks(predictions, image[:0], query[:0]).shape == (0, 20, 32)


def test_a_padded_image_has_the_maps_that_it_has_alone() -> None:
    detector, (images, padding) = build(), pictures()
    assert detector.mask_attention is not None
    together, alone = detector(images, padding), detector(images[1:, :, :24, :40])
    maps = [
        detector.mask_attention(seen.states[-1], seen.encoded_images.encoded, seen.encoded_images.padding)
        for seen in (together, alone)
    ]
    grid = maps[0][1].unflatten(-1, (5, 8))
    torch.testing.assert_close(grid[..., :3, :5].flatten(-2), maps[1][0], rtol=1e-4, atol=1e-5)
    assert grid[..., 3:, :].abs().max() == grid[..., 5:].abs().max() == 0


def test_maps_sum_to_one_a_head_or_together() -> None:
    for softmax, total in (("per_head", 3.0), ("joint", 1.0)):
        detector = build(mask_attention=softmax)
        assert detector.mask_attention is not None
        maps = detector.mask_attention(torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.arange(7).expand(2, 7) > 4)
        assert maps.shape == (2, 5, 3, 7)
        torch.testing.assert_close(maps.sum((2, 3)), torch.full((2, 5), total))
        if softmax == "per_head":
            torch.testing.assert_close(maps.sum(3), torch.ones(2, 5, 3))


def test_masks_change_nothing_else() -> None:
    images, padding = pictures()
    with_masks, without = build(), build(masks=False)
    own = without.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in with_masks.state_dict().items() if name in own)
    assert {name.split(".")[0] for name in with_masks.state_dict() if name not in own} == {
        "mask_attention",
        "mask_head",
    }
    ours, plain = with_masks(images, padding), without(images, padding)
    assert torch.equal(ours.boxes, plain.boxes)
    assert torch.equal(ours.logits, plain.logits)
    assert plain.encoded_images is None


def test_a_detector_without_masks_says_so() -> None:
    detector = build(masks=False)
    with pytest.raises(ConfigError, match=r"this DETR draws no masks.*detector\.masks=true"):
        detector.masks(detector(*pictures()), *every())
    assert "mask_head" not in detector.sections


def test_the_head_of_the_papers_has_their_size() -> None:
    with torch.device("meta"):
        detector = DETRConfig(masks=True).build()
    parts = [detector.get_submodule(part) for part in detector.sections["mask_head"]]
    assert sum(len(part.state_dict()) for part in parts) == 32
    assert sum(value.numel() for part in parts for value in part.parameters()) == 1_333_657
    assert len(detector.state_dict()) == 460 + 32


def test_a_backbone_without_finer_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"detector\.masks: .*'tiny' has none; choose detector\.masks=false or"):
        build(backbone=BackboneConfig(name="tiny", tiny_channels=(8,)))


def test_a_wrong_word_for_the_softmax_is_answered() -> None:
    with pytest.raises(ConfigError, match="mask_attention"):
        override(TINY, {"mask_attention": "jointly"})


def test_only_the_head_learns_where_nothing_else_should() -> None:
    detector = build()
    detector.train_only(["mask_head"])
    predictions = detector.train()(*pictures())
    detector.masks(predictions, torch.tensor([0, 1, 1]), torch.tensor([3, 3, 0])).square().mean().backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) is name.startswith(("mask_attention", "mask_head")), name


def test_hand_over_of_a_detector_to_one_with_masks_and_back() -> None:
    plain, drawing = build(masks=False), build()
    boxes = tuple(plain.sections)
    report = transfer_sections(plain.state_dict(), drawing, boxes)
    masks = sum(name.startswith("mask_") for name in drawing.state_dict())
    assert report.count("fresh")[0] == masks
    assert transfer_sections(drawing.state_dict(), plain, tuple(drawing.sections)).count("ignored")[0] == masks
    with pytest.raises(CheckpointError, match=r"mask_attention\.q_linear\.weight is missing"):
        transfer_sections(plain.state_dict(), drawing, tuple(drawing.sections))


def test_predictions_travel_with_what_masks_need() -> None:
    detector = build()
    predictions = detector(*pictures())
    moved = predictions.to("cpu")
    assert torch.equal(detector.masks(moved, *every()), detector.masks(predictions, *every()))
