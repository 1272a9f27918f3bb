"""The encoder's memory as maps: it is what the decoder sees, without padding, whatever the queries."""

from dataclasses import replace

import pytest
import torch

from ssldet.chance import generator
from ssldet.detectors.base import DetectorConfig
from ssldet.nn.padding import mean_over_cells, resize_padding
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_FP_DETR, TINY_DETR

DETECTORS = {
    "detr": TINY_DETR,
    "masks": replace(TINY_DETR, masks=True),
    "deformable": replace(SMALL_DEFORMABLE_DETR, dropout=0.0),
    "two stages": replace(SMALL_DEFORMABLE_DETR, dropout=0.0, two_stage=True, refine_boxes=True),
}


@pytest.mark.parametrize("config", DETECTORS.values(), ids=DETECTORS.keys())
def test_the_memory_is_what_the_encoder_says_of_each_image(config: DetectorConfig) -> None:
    torch.manual_seed(0)
    detector = config.build().eval()
    images = torch.randn(2, 3, 70, 96, generator=generator("memory"))
    padding = torch.zeros(2, 70, 96, dtype=torch.bool)
    padding[1, :, 64:] = True
    for hidden in (None, padding):
        with torch.no_grad():
            maps = detector.memory(detector.levels(images), hidden)
            states = detector(images, hidden).image_states
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        shown = hidden
        if hidden is not None:
            shown = torch.cat([resize_padding(hidden, level).flatten(1) for level in maps], dim=1)
        torch.testing.assert_close(mean_over_cells(cells, shown), states)
        assert maps[0].shape[:2] == (2, detector.width)
        assert [level.shape[2] for level in maps] == sorted((level.shape[2] for level in maps), reverse=True)


def test_a_detector_that_does_not_tell_returns_none() -> None:
    detector = SMALL_FP_DETR.build().eval()
    assert detector.memory(detector.levels(torch.zeros(1, 3, 64, 64))) == ()
