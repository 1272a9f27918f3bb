import re
from typing import Any

import pytest
import torch

from ssldet.errors import ConfigError
from ssldet.queries import LearnedQueries, PatchQueries, PlacedQueries, group_ids, ranks_within_groups
from ssldet.types import Queries

BATCH, PATCHES, QUERIES, CHANNELS, WIDTH = 2, 3, 12, 5, 8


def some_embedding() -> torch.Tensor:
    return torch.randn(QUERIES, WIDTH)


def ask(queries: PatchQueries, embedding: torch.Tensor, patches: int = PATCHES) -> tuple[torch.Tensor, Queries]:
    features = torch.randn(BATCH, patches, CHANNELS)
    return features, queries(features, as_queries(embedding))


def as_queries(embedding: torch.Tensor) -> Queries:
    position = embedding.unsqueeze(0)
    return Queries(content=torch.zeros_like(position), position=position)


def build(**options: Any) -> PatchQueries:
    return PatchQueries(CHANNELS, WIDTH, num_patches=PATCHES, **{"mask_ratio": 0.0, **options})


def test_learned_queries_are_the_same_for_every_image_and_start_empty() -> None:
    learned = LearnedQueries(QUERIES, WIDTH)
    queries = learned(3)
    assert queries.content.shape == queries.position.shape == (3, QUERIES, WIDTH)
    assert queries.content.abs().max() == 0
    for image in range(3):
        torch.testing.assert_close(queries.position[image], learned.embedding.detach())
    assert queries.groups is None
    assert list(learned.state_dict()) == ["embedding"]


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scale_is_the_deviation_of_fresh_embeddings(scale: float) -> None:
    assert LearnedQueries(200, 64, scale).embedding.std().item() == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize(("queries", "groups"), [(12, 3), (100, 20), (300, 30), (7, 7), (7, 1)])
def test_groups_are_consecutive_and_of_one_size(queries: int, groups: int) -> None:
    each = queries // groups
    assert group_ids(queries, groups).tolist() == [query // each for query in range(queries)]


@pytest.mark.parametrize(
    ("queries", "patches", "message"),
    [
        (
            100,
            30,
            "100 queries can't be shared equally among 30 patches (100 / 30); choose 25 or 50 patches, or 90 or 120",
        ),
        (5, 10, "choose 5 patches, or 10 or 20 queries"),
        (12, 0, "choose 1 patches, or 12 or 13 queries"),
    ],
)
def test_an_unequal_share_is_answered_with_equal_ones(queries: int, patches: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        group_ids(queries, patches)


def test_each_patch_is_repeated_consecutively_and_added_to_the_embedding() -> None:
    queries, embedding = build(), some_embedding()
    features, asked = ask(queries, embedding)
    projected = queries.projection(features)
    for image in range(BATCH):
        for slot in range(QUERIES):
            torch.testing.assert_close(asked.position[image, slot], projected[image, slot // 4] + embedding[slot])
    assert asked.content.abs().max() == 0
    assert asked.groups is not None
    assert asked.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_features_join_the_content_where_the_detector_wants_that() -> None:
    queries = build(shuffle=True)
    own = Queries(content=torch.randn(1, QUERIES, WIDTH), position=torch.randn(1, QUERIES, WIDTH))
    features = torch.randn(BATCH, PATCHES, CHANNELS)
    asked = queries(features, own, "content")
    order = torch.cdist(asked.position[0], own.position[0]).argmin(1)
    assert sorted(order.tolist()) == list(range(QUERIES))
    assert torch.equal(asked.position, own.position[:, order].expand(BATCH, -1, -1))
    projected = queries.projection(features).repeat_interleave(4, dim=1)
    torch.testing.assert_close(asked.content, projected + own.content[:, order])


def test_placed_queries_have_content_position_and_a_point() -> None:
    placed = PlacedQueries(QUERIES, WIDTH)
    queries = placed(3)
    assert queries.content.shape == queries.position.shape == (3, QUERIES, WIDTH)
    torch.testing.assert_close(queries.position[2], placed.embedding[:, :WIDTH])
    torch.testing.assert_close(queries.content[2], placed.embedding[:, WIDTH:])
    points = placed.points(queries.position)
    assert points.shape == (3, QUERIES, 2)
    assert 0 < points.min() < points.max() < 1
    assert placed.reference.bias.abs().max() == 0


def test_ranks_count_earlier_queries_of_the_same_group() -> None:
    assert ranks_within_groups(torch.tensor([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]


@pytest.mark.parametrize("grouped", [False, True])
def test_groups_keep_their_identity_where_attention_ignores_them(grouped: bool) -> None:
    _, asked = ask(build(grouped_attention=grouped), some_embedding())
    assert asked.groups is not None
    assert asked.attend_within_groups is grouped


def hidden(queries: PatchQueries) -> torch.Tensor:
    """Return which slots show their embedding only."""
    embedding = some_embedding()
    return (ask(queries, embedding)[1].position == embedding).all(-1)


def test_single_queries_are_hidden_each_by_its_own_chance() -> None:
    drawn = torch.stack([hidden(build(mask_ratio=0.25)) for _ in range(300)]).float()
    assert drawn.mean().item() == pytest.approx(0.25, abs=0.02)
    neighbours = drawn[:, 0, 0] * drawn[:, 0, 1]
    assert neighbours.mean().item() == pytest.approx(0.0625, abs=0.05)


def test_whole_patches_are_hidden() -> None:
    drawn = torch.stack([hidden(build(mask_ratio=0.25, masking="patch")) for _ in range(300)])
    by_patch = drawn.view(300, BATCH, PATCHES, 4)
    assert torch.equal(by_patch.any(-1), by_patch.all(-1))
    assert by_patch.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_what_is_not_hidden_is_not_rescaled() -> None:
    queries, embedding = build(mask_ratio=0.5), some_embedding()
    features, asked = ask(queries, embedding)
    full = queries.projection(features).repeat_interleave(4, dim=1) + embedding
    shown = ~(asked.position == embedding).all(-1)
    assert 0 < shown.sum() < shown.numel()
    torch.testing.assert_close(asked.position[shown], full[shown])


def test_shuffling_permutes_embeddings_once_for_all_images_and_leaves_patches_in_place() -> None:
    queries, embedding = build(shuffle=True), some_embedding()
    features, asked = ask(queries, embedding)
    rows = asked.position - queries.projection(features).repeat_interleave(4, dim=1)
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=1e-5)
    order = torch.cdist(rows[0], embedding).argmin(1)
    assert sorted(order.tolist()) == list(range(QUERIES))
    assert order.tolist() != list(range(QUERIES))
    torch.testing.assert_close(rows[0], embedding[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patches", [1, 2, 3])
def test_outside_training_fewer_patches_take_the_first_embeddings_and_nothing_is_drawn(patches: int) -> None:
    queries, embedding = build(mask_ratio=0.9, shuffle=True).eval(), some_embedding()
    features, asked = ask(queries, embedding, patches)
    expected = queries.projection(features).repeat_interleave(4, dim=1) + embedding[: patches * 4]
    torch.testing.assert_close(asked.position, expected)
    assert asked.groups is not None
    assert len(asked.groups) == patches * 4


def test_a_wrong_number_of_patches_retells_the_call() -> None:
    with pytest.raises(ConfigError, match=r"got 2 patches per image but was built with num_patches=3 .* exactly"):
        ask(build(), some_embedding(), patches=2)
    with pytest.raises(ConfigError, match=r"got 4 patches .* at most"):
        ask(build().eval(), some_embedding(), patches=4)
    with pytest.raises(ConfigError, match="11 queries can't be shared equally among 3 patches"):
        ask(build(), torch.randn(11, WIDTH))


def test_normalised_features_have_one_scale_and_no_parameters() -> None:
    queries, embedding = build(normalise=True), some_embedding()
    features = torch.randn(BATCH, PATCHES, CHANNELS) * 50 + 9
    shown = queries(features, as_queries(embedding)).position - embedding
    torch.testing.assert_close(shown.mean(-1), torch.zeros(BATCH, QUERIES), atol=1e-4, rtol=0)
    torch.testing.assert_close(shown.var(-1, correction=0), torch.ones(BATCH, QUERIES), atol=1e-3, rtol=0)
    assert list(queries.state_dict()) == ["projection.weight", "projection.bias"]


def test_gradients_reach_projection_embedding_and_features() -> None:
    queries, embedding = build(), some_embedding().requires_grad_()
    features = torch.randn(BATCH, PATCHES, CHANNELS, requires_grad=True)
    queries(features, as_queries(embedding)).position.square().sum().backward()
    for given in (features, embedding, queries.projection.weight):
        assert given.grad is not None
        assert (given.grad != 0).any()
