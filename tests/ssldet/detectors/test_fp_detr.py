"""FP-DETR: sizes of the published variants, padding inside, patches as queries, and configurations that can't be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssldet.detectors.fp_detr import BASE, FPDETR, LITE, SMALL, FPDETRConfig
from ssldet.errors import ConfigError
from ssldet.queries import PatchQueries
from ssldet.recipe import check, from_document, to_document
from tests.models import SMALL_FP_DETR


def build(config: FPDETRConfig = SMALL_FP_DETR) -> FPDETR:
    """Build one in which nothing is zero any more, so that boxes and points differ."""
    detector = config.build().eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return detector


def test_every_joined_layer_answers_every_query() -> None:
    predictions = build()(torch.randn(2, 3, 64, 96))
    assert predictions.logits.shape == (3, 2, 11, 5)
    assert predictions.boxes.shape == (3, 2, 11, 4)
    assert predictions.states.shape == (3, 2, 11, 64)
    assert 0 <= predictions.boxes.min() <= predictions.boxes.max() <= 1


@pytest.mark.parametrize(
    ("config", "tokenizer", "shared"),
    [(LITE, 192, 256 * 256 * 4 + 256 * 4), (SMALL, 384, 384 * 384 * 4 + 384 * 4), (BASE, 384, 480 * 480 * 4 + 480 * 4)],
    ids=("lite", "small", "base"),
)
def test_published_sizes(config: FPDETRConfig, tokenizer: int, shared: int) -> None:
    check(config)
    detector = replace(config, encoder_layers=1, joined_layers=1).build()
    parts = {"tokenizer": detector.tokenizer, "adaptor": detector.adaptor}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    # Convolutions of 8, 2 and 2 pixels with biases, and two norms a level.
    assert sizes["tokenizer"] == tokenizer * (192 + 1) + 2 * tokenizer * (4 * tokenizer + 1) + 3 * 4 * tokenizer
    assert sizes["adaptor"] == shared + 2 * config.width
    assert (config.encoder_layers, config.joined_layers, config.num_queries) == (6, 6, 300)


@pytest.mark.parametrize("size", [(33, 70), (64, 64), (31, 32)])
def test_sides_are_padded_inside_as_a_padded_canvas_is(size: tuple[int, int]) -> None:
    """An image of any size is answered like the same image on a canvas of whole patches, padding marked."""
    detector = build()
    image = torch.randn(1, 3, *size)
    height, width = (-(-side // 32) * 32 for side in size)
    canvas, padding = torch.zeros(1, 3, height, width), torch.ones(1, height, width, dtype=torch.bool)
    canvas[:, :, : size[0], : size[1]], padding[:, : size[0], : size[1]] = image, False
    alone, whole = detector(image), detector(canvas, padding)
    torch.testing.assert_close(alone.boxes, whole.boxes)
    torch.testing.assert_close(alone.logits, whole.logits)


def test_boxes_lie_around_their_points_at_first() -> None:
    detector = SMALL_FP_DETR.build().eval()
    points = detector.queries.points(detector.default_queries(1).position)
    boxes = detector(torch.randn(1, 3, 64, 64)).boxes
    torch.testing.assert_close(boxes[..., :2], points.expand(3, -1, -1, -1))
    assert boxes[..., 2:].unique().tolist() == pytest.approx([torch.tensor(-2.0).sigmoid().item()])


def test_features_describe_the_last_level_of_the_tokenizer() -> None:
    detector = build()
    features = detector.features(torch.randn(2, 3, 60, 100))
    assert features.shape == (2, 64, 2, 4)
    assert detector.feature_channels == 64
    # The level lies behind the two finer ones, in rows.
    encoded = detector.encode(torch.ones(1, 3, 64, 64))
    start = 8 * 8 + 4 * 4
    expected = encoded.cells[0, start : start + 4].view(2, 2, 64).permute(2, 0, 1)
    torch.testing.assert_close(detector.features(torch.ones(1, 3, 64, 64))[0], expected)


def test_layers_that_say_where_to_look_are_named() -> None:
    detector = build()
    layers = detector.sampling_layers()
    assert len(layers) == 2 + 3 + 1
    assert {"encoder.layers.1.self_attn.sampling_offsets", "queries.reference"} <= set(layers)
    for layer in layers:
        detector.get_submodule(layer)


def test_patches_join_the_content() -> None:
    detector = build()
    queries = PatchQueries(64, 64, num_patches=1, mask_ratio=0.0).eval()
    own = detector.default_queries(1)
    asked = queries(torch.randn(1, 1, 64), own, detector.patches_join)
    assert torch.equal(asked.position, own.position)
    assert not torch.equal(asked.content, own.content)
    image = torch.randn(1, 3, 64, 64)
    moved: Tensor = detector(image, None, asked).states - detector(image).states
    assert moved.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 100, "heads": 4}, r"width: 100 .* choose width=96 or 128"),
        ({"strides": ()}, "strides: "),
        ({"strides": (8, 12)}, r"strides: \[8, 12\] .* choose strides=\[8, 16, 32\]"),
        ({"strides": (16, 8)}, "strides: "),
        ({"strides": (0, 8)}, "strides: "),
    ],
)
def test_what_can_not_be_built_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(replace(SMALL_FP_DETR, **changes))  # type: ignore[arg-type]


def test_a_configuration_survives_as_text() -> None:
    assert from_document(FPDETRConfig, to_document(BASE)) == BASE
