from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou
from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.errors import ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.queries import PatchQueries, group_ids
from ssldet.recipe import check, from_document, to_document

TINY = DeformableDETRConfig(
    backbone=BackboneConfig(name="tiny", tiny_channels=(6, 10, 14), frozen_stages=0),
    num_classes=5,
    num_queries=12,
    width=64,
    heads=4,
    encoder_layers=2,
    decoder_layers=3,
    feedforward=20,
    dropout=0.0,
    backbone_levels=2,
    extra_levels=1,
    encoder_points=2,
    decoder_points=3,
)
VARIANTS = {
    "plain": {},
    "refined": {"refine_boxes": True},
    "two stages": {"refine_boxes": True, "two_stage": True},
    "two stages, apart": {"refine_boxes": True, "two_stage": True, "proposal_overlap": 0.3},
    "pre-norm": {"refine_boxes": True, "pre_norm": True},
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def build(**options: object) -> DeformableDETR:
    """Build one in which nothing is zero any more, so that boxes and points differ."""
    detector = replace(TINY, **options).build().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if name.startswith(("encoder", "decoder", "box_head")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector


def some_images() -> Tensor:
    return torch.randn(2, 3, 48, 64)


@each_variant
def test_every_layer_answers_every_query(options: dict[str, bool]) -> None:
    detector = build(**options)
    predictions = detector(some_images())
    assert predictions.logits.shape == (3, 2, 12, 5)
    assert predictions.boxes.shape == (3, 2, 12, 4)
    assert predictions.states.shape == (3, 2, 12, 64)
    assert predictions.groups is None
    assert predictions.scores == detector.scores
    assert 0 <= predictions.boxes.min() <= predictions.boxes.max() <= 1
    assert (predictions.proposals is not None) == ("two_stage" in options)
    if predictions.proposals is not None:
        # Strides 4, 8 and 16.
        cells = 12 * 16 + 6 * 8 + 3 * 4
        assert predictions.proposals.logits.shape == (1, 2, cells, 5)
        assert predictions.proposals.boxes.shape == (1, 2, cells, 4)


def test_what_a_detector_says_of_itself() -> None:
    detector = build()
    assert (detector.num_classes, detector.num_queries, detector.width, detector.feature_channels) == (5, 12, 64, 30)
    assert detector.default_queries(3).content.shape == (3, 12, 64)
    assert detector.default_queries(3).content.abs().max() > 0
    nothing = build(refine_boxes=True, two_stage=True).default_queries(3)
    assert nothing.position.shape == (3, 12, 64)
    assert nothing.position.abs().max() == nothing.content.abs().max() == 0


@each_variant
def test_sections_cover_the_state_without_overlap(options: dict[str, bool]) -> None:
    detector = build(**options)
    for key in detector.state_dict():
        owners = [name for name, parts in detector.sections.items() if key.startswith(tuple(f"{p}." for p in parts))]
        assert owners == [key.split(".")[0].replace("level_embedding", "encoder")], key
    for name, parts in detector.sections.items():
        assert any(key.startswith(parts) for key in detector.state_dict()), name
    assert ("queries" in detector.sections) != ("proposals" in detector.sections)


def test_it_starts_as_the_authors_do() -> None:
    plain, refined, two_stage = (replace(TINY, **VARIANTS[name]).build() for name in ("plain", "refined", "two stages"))
    assert [len(one.box_head) for one in (plain, refined, two_stage)] == [1, 3, 4]
    assert [len(one.class_head) for one in (plain, refined, two_stage)] == [1, 3, 4]
    for detector in (plain, refined, two_stage):
        for head in detector.class_head:
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((5,), 0.01))
        assert all(head.layers[-1].weight.abs().max() == 0 for head in detector.box_head)
        assert all(
            torch.equal(head.layers[0].weight, detector.box_head[0].layers[0].weight) for head in detector.box_head
        )
    assert plain.box_head[0].layers[-1].bias.tolist() == [0, 0, -2, -2]
    assert [head.layers[-1].bias[2].item() for head in refined.box_head] == [-2, 0, 0]
    assert [head.layers[-1].bias[2].item() for head in two_stage.box_head] == [0, 0, 0, 0]
    images = some_images()
    # Points of fresh queries, with boxes of one size around them; every layer agrees.
    boxes = plain(images).boxes
    points = plain.queries.points(plain.default_queries(2).position)
    torch.testing.assert_close(boxes[2, ..., :2], points, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes[..., 2:], torch.tensor(-2.0).sigmoid().expand(3, 2, 12, 2))
    torch.testing.assert_close(refined(images).boxes[2], refined(images).boxes[0], atol=1e-5, rtol=0)


@each_variant
def test_what_other_images_show_does_not_matter(options: dict[str, bool]) -> None:
    detector, images = build(**options), some_images()
    padding = torch.zeros(2, 48, 64, dtype=torch.bool)
    padding[1, 30:], padding[1, :, 41:] = True, True
    others = images.clone()
    others[0] = 3.0
    one, other = detector(images, padding), detector(others, padding)
    torch.testing.assert_close(one.boxes[:, 1], other.boxes[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(one.logits[:, 1], other.logits[:, 1], atol=1e-5, rtol=0)
    assert not torch.allclose(one.boxes[:, 0], other.boxes[:, 0], atol=1e-4)


def test_a_padding_mask_of_nothing_changes_nothing() -> None:
    detector, images = build(), some_images()
    nothing = torch.zeros(2, 48, 64, dtype=torch.bool)
    torch.testing.assert_close(detector(images, nothing).boxes, detector(images).boxes)


@each_variant
def test_gradients_reach_everything_that_learns(options: dict[str, bool]) -> None:
    detector = build(**options).train()
    predictions = detector(some_images())
    total = predictions.boxes.square().sum() + predictions.logits.sum()
    if predictions.proposals is not None:
        total = total + predictions.proposals.boxes.square().sum() + predictions.proposals.logits.sum()
    total.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or name.endswith("bias"), name


@each_variant
def test_a_patch_is_answered_without_the_others_only_where_attention_is_grouped(options: dict[str, bool]) -> None:
    detector, images = build(**options), some_images()
    features = torch.randn(2, 3, 14)
    other = features.clone()
    other[:, 2] += 1
    for grouped in (True, False):
        asking = PatchQueries(14, 64, num_patches=3, grouped_attention=grouped).eval()
        first, second = (
            detector(images, None, asking(f, detector.default_queries(1), detector.patches_join))
            for f in (features, other)
        )
        assert first.groups is not None
        assert first.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert torch.allclose(first.boxes[:, :, :8], second.boxes[:, :, :8], atol=1e-6) is grouped
        assert not torch.allclose(first.logits[:, :, 8:], second.logits[:, :, 8:], atol=1e-6)


def test_every_group_that_asks_for_nothing_begins_with_the_best_proposals() -> None:
    detector, images = build(refine_boxes=True, two_stage=True), some_images()
    begun = []
    detector.decoder.register_forward_pre_hook(lambda _, given: begun.append(given[2]))
    predictions = detector(images, None, replace(detector.default_queries(2), groups=group_ids(12, 3)))
    detector(images)
    groups, alone = begun[0].unflatten(1, (3, 4)), begun[1]
    assert torch.equal(groups[:, 0], groups[:, 2])
    assert torch.equal(groups[:, 0], alone[:, :4])
    assert predictions.proposals is not None
    best = predictions.proposals.logits[0, :, :, 0].argsort(1, descending=True)
    expected = predictions.proposals.boxes[0, 1, best[1, :4]]
    torch.testing.assert_close(groups[1, 1], expected)


def test_a_group_begins_with_the_cells_that_agree_with_what_it_asks_for() -> None:
    detector, images = build(refine_boxes=True, two_stage=True), some_images()
    begun, states = [], []
    detector.decoder.register_forward_pre_hook(lambda _, given: begun.append(given[2]))
    assert detector.proposals is not None
    detector.proposals.register_forward_hook(lambda _module, _given, made: states.append(made[0]))
    detector(images)
    # Two cells of the finest level of each image, as if a patch looked just like them.
    cells = torch.tensor([[37, 101], [150, 82]])
    asked = states[0][torch.arange(2)[:, None], cells]
    plain = detector.default_queries(2)
    predictions = detector(images, None, replace(plain, groups=group_ids(12, 2), equal_groups=2, asked=10 * asked))
    proposals = predictions.proposals
    assert proposals is not None
    assert proposals.groups is not None
    assert proposals.groups.bincount().tolist() == [252, 252]
    assert proposals.states.shape == (1, 2, 504, 0), "copies for every group, which nothing reads"
    boxes = proposals.boxes[0].unflatten(1, (2, 252))
    for image in range(2):
        for group in range(2):
            own = proposals.logits[0, image].unflatten(0, (2, 252))[group, :, 0]
            assert own.argmax() == cells[image, group]
            first = begun[1][image].unflatten(0, (2, 6))[group]
            torch.testing.assert_close(first, boxes[image, group, own.argsort(descending=True)[:6]])
    # The score of attention: a product, divided by the root of the width.
    added = proposals.logits[0, 0, 252:, 0] - detector(images).proposals.logits[0, 0, :, 0]
    torch.testing.assert_close(added, 10 * states[0][0] @ asked[0, 1] / 8, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("asking", [False, True])
def test_queries_of_a_group_begin_apart_if_asked_to(asking: bool) -> None:
    torch.manual_seed(0)
    close, apart = (build(refine_boxes=True, two_stage=True, proposal_overlap=overlap) for overlap in (1.0, 0.2))
    with torch.no_grad():
        close.box_head[-1].layers[-1].bias[2:] += 2  # boxes wider than the steps between cells
    apart.load_state_dict(close.state_dict())
    images, begun = some_images(), []
    queries = replace(close.default_queries(2), groups=group_ids(12, 3), equal_groups=3)
    if asking:
        queries = replace(queries, asked=torch.randn(2, 3, 64))
    for detector in (close, apart):
        detector.decoder.register_forward_pre_hook(lambda _, given: begun.append(given[2]))
        predictions = detector(images, None, queries)
    corners = [cxcywh_to_xyxy(boxes).unflatten(1, (3, 4)) for boxes in begun]
    overlaps = [pairwise_iou(one, one).tril(-1) for one in corners]
    assert overlaps[0].max() > 0.2
    assert overlaps[1].max() <= 0.2
    # The best cell is the first all the same.
    torch.testing.assert_close(corners[0][:, :, 0], corners[1][:, :, 0])
    assert predictions.proposals is not None
    assert predictions.proposals.boxes.shape[2] == (3 if asking else 1) * (12 * 16 + 6 * 8 + 3 * 4)


def test_queries_of_patches_ask_for_them() -> None:
    asking = PatchQueries(14, 64, num_patches=3, mask_ratio=0.5)
    own = build(refine_boxes=True, two_stage=True).default_queries(1)
    features = torch.randn(2, 3, 14)
    queries = asking(features, own, "content")
    # Hidden from single queries, the patch is still what their group asks for.
    assert (queries.content == 0).all(-1).any()
    torch.testing.assert_close(queries.asked, asking.projection(features))
    asking.masking = "patch"
    queries = asking(features, own, "content")
    hidden = (queries.content.unflatten(1, (3, 4)) == 0).all(-1).all(-1)
    assert 0 < hidden.sum() < 6
    assert queries.asked is not None
    assert torch.equal((queries.asked == 0).all(-1), hidden)


def test_a_level_of_one_cell_is_normalised() -> None:
    assert build().train()(torch.randn(1, 3, 16, 16)).boxes.isfinite().all()


def test_an_image_with_fewer_cells_than_queries_is_answered() -> None:
    detector = build(refine_boxes=True, two_stage=True, num_queries=100)
    predictions = detector(torch.randn(1, 3, 16, 24))
    assert predictions.proposals is not None
    assert predictions.proposals.logits.shape[2] == 4 * 6 + 2 * 3 + 1 * 2
    assert predictions.boxes.shape == (3, 1, 100, 4)
    assert predictions.boxes.isfinite().all()


def test_cells_of_padding_propose_nothing() -> None:
    detector = build(refine_boxes=True, two_stage=True)
    padding = torch.zeros(2, 48, 64, dtype=torch.bool)
    padding[1, :, 32:] = True
    predictions = detector(some_images(), padding)
    assert predictions.proposals is not None
    finest = predictions.proposals.boxes[0, :, : 12 * 16].unflatten(1, (12, 16))
    assert (finest[1, :, 8:] == 1).all()
    assert (finest[1, 1:-1, 1:7, 2:] < 0.9).all()
    assert (finest[0, 1:-1, 9:15, 2:] < 0.9).all()


def test_boxes_and_logits_are_in_32_bits_whatever_the_rest_runs_in() -> None:
    for options in VARIANTS.values():
        detector, images = build(**options), some_images()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = detector(images)
        assert mixed.boxes.dtype == mixed.logits.dtype == torch.float32
        assert len(mixed.boxes.unique()) > 200
        if "two_stage" not in options:
            torch.testing.assert_close(mixed.boxes, detector(images).boxes, atol=0.05, rtol=0)


def test_levels_are_the_backbones_coarsest_and_coarser_ones() -> None:
    channels = build(backbone_levels=3, extra_levels=2).projection
    assert [tuple(level[0].weight.shape) for level in channels.levels] == [
        (64, 6, 1, 1),
        (64, 10, 1, 1),
        (64, 30, 1, 1),
        (64, 30, 3, 3),
        (64, 64, 3, 3),
    ]
    single = build(backbone_levels=1, extra_levels=0)
    assert single(some_images()).boxes.shape == (3, 2, 12, 4)
    with pytest.raises(
        ConfigError, match=r"4 levels are wanted, and backbone 'tiny' has 3; choose .*backbone_levels=3"
    ):
        build(backbone_levels=4)


def test_contradictions_are_told_with_a_remedy() -> None:
    assert DeformableDETRConfig().problems() == []
    (width,) = replace(TINY, width=72).problems()
    assert "choose width=64 or 96" in width
    (stages,) = replace(TINY, two_stage=True).problems()
    assert "choose refine_boxes=true too" in stages
    (apart,) = replace(TINY, proposal_overlap=0.5).problems()
    assert "choose two_stage=true too" in apart


def test_a_configuration_comes_back_from_its_document() -> None:
    config = replace(TINY, refine_boxes=True)
    document = to_document(config)
    again = from_document(DeformableDETRConfig, document)
    assert again == config
    check(again)
