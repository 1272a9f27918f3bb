"""Layers in which queries join the cells: who sees whom, what the adaptor does, and what the last layer leaves out."""

import pytest
import torch
from torch import Tensor

from ssldet.nn.deformable import Levels
from ssldet.nn.deformable_transformer import DeformableEncoderLayer
from ssldet.nn.joined_encoder import JoinedEncoder, TaskAdaptor
from ssldet.nn.transformer import Grouping

SHAPES = ((3, 4), (2, 2))
CELLS = 16
GIVEN = {"layers": 3, "levels": 2, "points": 2}


@pytest.fixture
def stack() -> JoinedEncoder:
    return shaken(JoinedEncoder(16, 4, 24, 0.0, **GIVEN))


@pytest.fixture
def adaptor() -> TaskAdaptor:
    return shaken(TaskAdaptor(16, 4, 0.0, layers=3))


def shaken(module: torch.nn.Module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def some(queries: int = 5) -> dict[str, Tensor | Levels]:
    levels = Levels.of([torch.zeros(2, 16, *shape) for shape in SHAPES], None)
    return {
        "content": torch.randn(2, queries, 16),
        "position": torch.randn(2, queries, 16),
        "reference": torch.rand(2, queries, 2),
        "cells": torch.randn(2, CELLS, 16),
        "cell_position": torch.randn(1, CELLS, 16),
        "levels": levels,
    }


def test_every_layer_answers_every_query(stack: JoinedEncoder, adaptor: TaskAdaptor) -> None:
    assert stack(**some(), adaptor=adaptor).shape == (3, 2, 5, 16)


def test_a_layer_treats_cells_as_an_encoder_layer_does(stack: JoinedEncoder) -> None:
    plain = DeformableEncoderLayer(16, 4, 24, 0.0, levels=2, points=2, pre_norm=False).eval()
    plain.load_state_dict(stack.layers[0].state_dict())
    given = some()
    levels, cells = given["levels"], given["cells"]
    reference = levels.references(levels.centres())
    position = given["cell_position"].expand(2, -1, -1)
    torch.testing.assert_close(
        stack.layers[0](cells, position, reference, cells, levels), plain(cells, position, reference, levels)
    )


def test_queries_see_one_another_in_the_adaptor_alone(stack: JoinedEncoder, adaptor: TaskAdaptor) -> None:
    given = some()
    other = given | {"content": given["content"].clone()}
    other["content"][:, 0] += 1
    alone = (stack(**given) - stack(**other)).abs().amax((0, 1, 3))
    assert alone[0] > 0.1
    assert alone[1:].max() == 0
    together = (stack(**given, adaptor=adaptor) - stack(**other, adaptor=adaptor)).abs().amax((0, 1, 3))
    assert together[1:].min() > 1e-4


def test_queries_of_other_groups_are_hidden(stack: JoinedEncoder, adaptor: TaskAdaptor) -> None:
    given = some()
    other = given | {"content": given["content"].clone()}
    other["content"][:, 0] += 1
    groups = torch.tensor([0, 1, 0, 1, 1])
    moved = (stack(**given, adaptor=adaptor, groups=groups) - stack(**other, adaptor=adaptor, groups=groups)).abs()
    moved = moved.amax((0, 1, 3))
    assert moved[[1, 3, 4]].max() < 1e-6
    assert moved[2] > 1e-4


def test_cells_are_the_same_whoever_joins(stack: JoinedEncoder) -> None:
    """States of a query don't depend on how many others there are, without an adaptor."""
    given = some()
    fewer = given | {name: given[name][:, :2] for name in ("content", "position", "reference")}
    torch.testing.assert_close(stack(**given)[:, :, :2], stack(**fewer))


def test_the_adaptor_shares_its_attention_and_normalises_cells_too(adaptor: TaskAdaptor) -> None:
    assert sum("self_attn" in name for name, _ in adaptor.named_parameters()) == 4
    given = some()
    for layer in (0, 2):
        cells, content = adaptor(layer, given["cells"], given["content"], given["position"], Grouping())
        norm = adaptor.norms[layer]
        torch.testing.assert_close(cells, norm(given["cells"]))
        placed = given["content"] + given["position"]
        mixed = adaptor.self_attn(placed, placed, given["content"])
        torch.testing.assert_close(content, norm(given["content"] + mixed))


def test_the_last_layer_is_the_same_without_the_cells(stack: JoinedEncoder, adaptor: TaskAdaptor) -> None:
    """What nobody asks for is left out: queries alone go through the last layer, and answer as with the cells."""
    given = some()
    states = stack(**given, adaptor=adaptor)
    longer = shaken(JoinedEncoder(16, 4, 24, 0.0, **GIVEN | {"layers": 4}))
    longer.load_state_dict(stack.state_dict(), strict=False)
    more = TaskAdaptor(16, 4, 0.0, layers=4).eval()
    more.load_state_dict(adaptor.state_dict(), strict=False)
    torch.testing.assert_close(longer(**given, adaptor=more)[:3], states)
