"""Proposals of cells that look like what queries ask for."""

import torch
import torch.nn.functional as F

from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.proposed import SHARPNESS, resemblance
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.deformable import Levels
from ssldet.queries import PatchQueries


def lie(*shapes: tuple[int, int], paddings: list[torch.Tensor] | None = None) -> Levels:
    return Levels.of([torch.zeros(2, 1, *shape) for shape in shapes], paddings)


def test_the_cells_around_a_spot_look_like_it_most() -> None:
    torch.manual_seed(0)
    level = F.interpolate(torch.randn(2, 16, 3, 4), (9, 12))  # twelve patches of three by three equal cells
    looks = torch.stack([level[:, :, 1, 1], level[:, :, 7, 10]], dim=1)
    found = resemblance(level, looks, lie((9, 12), (5, 6)))
    assert found.shape == (2, 2, 9 * 12 + 5 * 6)
    finest = found[:, :, :108]
    grid = finest.view(2, 2, 9, 12)
    torch.testing.assert_close(grid[:, 0, 1, 1], torch.full((2,), SHARPNESS))
    torch.testing.assert_close(grid[:, 1, 7, 10], torch.full((2,), SHARPNESS))
    assert grid[:, 0, 4:].max() < 0.8 * SHARPNESS
    assert grid[:, 1, :5].max() < 0.8 * SHARPNESS
    # A coarser cell that lies within the patch looks like it as well.
    torch.testing.assert_close(found[:, 0, 108], torch.full((2,), SHARPNESS), atol=0.7, rtol=0)
    assert found.abs().max() <= SHARPNESS + 1e-4


def test_what_it_looks_like_does_not_depend_on_the_canvas() -> None:
    torch.manual_seed(0)
    level, looks = torch.randn(2, 8, 6, 8), torch.randn(2, 3, 8)
    alone = resemblance(level, looks, lie((6, 8), (3, 4))).split([48, 12], dim=-1)
    canvas = 100 * torch.randn(2, 8, 10, 12)
    canvas[:, :, :6, :8] = level
    paddings = [torch.ones(2, 10, 12, dtype=torch.bool), torch.ones(2, 5, 6, dtype=torch.bool)]
    paddings[0][:, :6, :8], paddings[1][:, :3, :4] = False, False
    padded = resemblance(canvas, looks, lie((10, 12), (5, 6), paddings=paddings)).split([120, 30], dim=-1)
    torch.testing.assert_close(padded[0].view(2, 3, 10, 12)[:, :, :6, :8].flatten(2), alone[0])
    torch.testing.assert_close(padded[1].view(2, 3, 5, 6)[:, :, :3, :4].flatten(2), alone[1])


def test_a_group_that_asks_for_nothing_finds_all_cells_alike() -> None:
    looks = torch.randn(2, 2, 8)
    looks[:, 1] = 0
    found = resemblance(torch.randn(2, 8, 6, 8), looks, lie((6, 8)))
    assert (found[:, 1] == 0).all()
    assert found[:, 0].std() > 0


def test_levels_of_any_size_are_compared() -> None:
    looks = torch.randn(2, 1, 8)
    for shapes in (((1, 1), (1, 1)), ((3, 5), (3, 5), (1, 1)), ((7, 5), (3, 2)), ((4, 4), (8, 8))):
        found = resemblance(torch.randn(2, 8, *shapes[0]), looks, lie(*shapes))
        assert found.shape[-1] == sum(height * width for height, width in shapes)
        assert found.isfinite().all()


def test_an_untrained_detector_begins_where_the_image_looks_like_the_patch() -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig(name="tiny", tiny_channels=(16, 24), frozen_norm=False)
    detector = DeformableDETRConfig(
        backbone=backbone, num_queries=4, width=64, heads=2, encoder_layers=0, decoder_layers=1, feedforward=32,
        dropout=0.0, backbone_levels=2, extra_levels=0, refine_boxes=True, two_stage=True,
    ).build().eval()  # fmt: skip
    colours = torch.zeros(1, 3, 4, 6)
    colours[0, 0, 1, 1] = colours[0, 2, 2, 4] = 2  # a red and a blue field on grey
    images = F.interpolate(colours, scale_factor=16)
    begun: list[torch.Tensor] = []
    detector.decoder.register_forward_pre_hook(lambda _, given: begun.append(given[2]))
    finest, last = detector.levels(images)[-2:]
    height, width = finest.shape[2:]
    cells = [(height * 3 // 8, width // 4), (height * 5 // 8, width * 3 // 4)]
    looks = (
        torch.stack([finest[:, :, row, column] for row, column in cells], dim=1),
        last.new_zeros(1, 2, last.shape[1]),
    )
    asking = PatchQueries(detector.feature_channels, 64, num_patches=2, mask_ratio=0.0)
    torch.nn.init.zeros_(asking.projection.weight)
    torch.nn.init.zeros_(asking.projection.bias)
    own = detector.default_queries(1)
    detector(images, None, asking(looks[-1], own, "content", looks=looks))
    detector(images, None, asking(looks[-1], own, "content"))
    by_looks, without = (first[0, [0, 2], :2] for first in begun)
    true = torch.tensor([[(column + 0.5) / width, (row + 0.5) / height] for row, column in cells])
    assert (by_looks - true).abs().max() < 0.15
    assert (without - true).abs().max() > 0.2
