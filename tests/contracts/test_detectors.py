"""Every registered detector under every law, and laws that notice when they are broken."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssldet import testing
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.registry import find, names
from ssldet.testing import detectors as laws
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR, SMALL_FP_DETR, TINY_DETR

TINY_DEFORMABLE = replace(SMALL_DEFORMABLE_DETR, backbone=TINY_DETR.backbone, backbone_levels=2, dropout=0.0)

SMALL: dict[str, list[DetectorConfig]] = {
    "detr": [SMALL_DETR, replace(TINY_DETR, pre_norm=not TINY_DETR.pre_norm)],
    "deformable_detr": [
        TINY_DEFORMABLE,
        replace(TINY_DEFORMABLE, refine_boxes=True),
        replace(TINY_DEFORMABLE, refine_boxes=True, two_stage=True),
        replace(TINY_DEFORMABLE, refine_boxes=True, two_stage=True, proposal_overlap=0.3),
    ],
    "fp_detr": [SMALL_FP_DETR, replace(SMALL_FP_DETR, strides=(16,), extra_levels=0, encoder_layers=1)],
}
"""Small forms of each registered detector."""


def test_every_registered_detector_is_among_them() -> None:
    assert sorted(SMALL) == names("ssldet.detectors")
    for name, configs in SMALL.items():
        assert configs
        assert {type(config) for config in configs} == {find("ssldet.detectors", name)}


@pytest.mark.parametrize("law", testing.DETECTOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "config", [pytest.param(c, id=f"{name}-{n}") for name, configs in SMALL.items() for n, c in enumerate(configs)]
)
def test_a_detector_keeps_the_law(config: DetectorConfig, law: testing.DetectorLaw) -> None:
    law(config)


class Broken(DETR):
    """A DETR that breaks one law after another."""

    how = ""

    def normalise(self, pixels: Tensor, padding: Tensor | None = None) -> Tensor:
        return super().normalise(pixels, None if self.how == "sees padding" else padding)

    def features(self, images: Tensor) -> Tensor:
        features = super().features(images)
        return features - features.mean(0, keepdim=True) if self.how == "mixes images" else features

    def forward(self, images: Tensor, padding: Tensor | None = None, queries: Any = None) -> Any:
        if self.how == "mixes groups" and queries is not None:
            queries = replace(queries, attend_within_groups=False)
        if self.how == "draws":
            images = images + torch.randn_like(images)
        hidden = None if self.how == "sees padding" else padding
        found = super().forward(images, hidden, queries)
        if self.how == "half":
            return replace(found, boxes=found.boxes.to(torch.bfloat16))
        return replace(found, groups=None) if self.how == "loses groups" else found


@pytest.mark.parametrize(
    ("how", "law", "said"),
    [
        ("sees padding", laws.padding_is_not_looked_at, "pixels in the padding"),
        ("mixes images", laws.images_do_not_see_each_other, "another image of the batch"),
        ("mixes groups", laws.groups_do_not_see_each_other, "with the queries of another"),
        ("loses groups", laws.groups_do_not_see_each_other, "carry the queries' groups"),
        ("draws", laws.answers_are_repeatable, "two answers differ"),
        ("half", laws.mixed_precision_is_close, "boxes are torch.bfloat16"),
    ],
)
def test_a_broken_detector_is_noticed(
    how: str, law: testing.DetectorLaw, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: DETRConfig) -> Detector:
        detector = original(config)
        detector.__class__ = Broken
        detector.how = how  # type: ignore[assignment]
        return detector

    original = DETRConfig.build
    monkeypatch.setattr(DETRConfig, "build", build)
    with pytest.raises(AssertionError, match=said):
        law(TINY_DETR)


def test_a_section_that_is_missing_or_does_not_learn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: DETRConfig) -> Detector:
        detector = original(config)
        detector.sections = {name: parts for name, parts in detector.sections.items() if name != "decoder"}
        return detector

    original = DETRConfig.build
    monkeypatch.setattr(DETRConfig, "build", build)
    with pytest.raises(AssertionError, match=r"decoder\..* belongs to the sections \[\]"):
        laws.sections_cover_the_state(TINY_DETR)
    monkeypatch.setattr(DETRConfig, "build", original)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, states: states @ self.weight.detach().T + self.bias.detach())
    with pytest.raises(AssertionError, match="learns and gets no gradient"):
        laws.gradient_reaches_every_section(TINY_DETR)
