import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssldet.nn.deformable import (
    DeformableAttention,
    Levels,
    sample,
    sample_by_bags,
    sample_by_gather,
    sample_by_grid,
)

BATCH, QUERIES, HEADS, POINTS, WIDTH = 2, 5, 3, 4, 12
SHAPES = ((7, 9), (4, 5), (1, 1))
FORMS = (sample_by_bags, sample_by_gather, sample_by_grid)
Form = Callable[[Tensor, Tensor, Tensor, Levels], Tensor]


def some_maps(shapes: tuple[tuple[int, int], ...] = SHAPES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(BATCH, WIDTH, *shape, dtype=dtype) for shape in shapes]


def some_points(levels: Levels, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Points in and around the maps, and their weights."""
    count = len(levels.shapes)
    places = torch.rand(BATCH, QUERIES, HEADS, count, POINTS, 2, dtype=dtype) * 1.6 - 0.3
    shares = torch.rand(BATCH, QUERIES, HEADS, count * POINTS, dtype=dtype).softmax(-1)
    return places * levels.sizes.to(dtype).view(-1, 1, 2) - 0.5, shares.unflatten(-1, (count, POINTS))


def by_the_book(maps: list[Tensor], places: Tensor, shares: Tensor) -> Tensor:
    """The definition, one point after the other."""
    result = torch.zeros(BATCH, places.shape[1], HEADS, WIDTH // HEADS, dtype=shares.dtype)
    for image, query, head, level, point in torch.cartesian_prod(*map(torch.arange, places.shape[:-1])).tolist():
        x, y = places[image, query, head, level, point].tolist()
        values = maps[level][image].unflatten(0, (HEADS, -1))[head]
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < values.shape[1] and 0 <= column < values.shape[2]:
                    weight = (1 - abs(x - column)) * (1 - abs(y - row)) * shares[image, query, head, level, point]
                    result[image, query, head] += weight * values[:, row, column]
    return result.flatten(2)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_samples_by_the_book(form: Form) -> None:
    maps = some_maps()
    levels = Levels.of(maps, None)
    places, shares = some_points(levels)
    found = form(levels.join(maps), places, shares, levels)
    torch.testing.assert_close(found, by_the_book(maps, places, shares), atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_gradients(form: Form) -> None:
    maps = some_maps(dtype=torch.float32)
    levels = Levels.of(maps, None)
    places, shares = some_points(levels, torch.float32)
    values, seed = levels.join(maps), torch.randn(BATCH, QUERIES, WIDTH)

    def answer(form: Form) -> list[Tensor]:
        given = [part.clone().requires_grad_() for part in (values, places, shares)]
        result = form(*given, levels)
        return [result, *torch.autograd.grad(result, given, seed)]

    torch.testing.assert_close(answer(form), answer(sample_by_grid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form: Form) -> None:
    maps = [torch.randn(BATCH, 6, *shape, dtype=torch.float64) for shape in ((3, 2), (1, 1))]
    levels = Levels.of(maps, None)
    # Away from cell borders, where the samples have a kink.
    places = torch.randint(-1, 3, (BATCH, 3, HEADS, 2, 2, 2)) + 0.1 + 0.8 * torch.rand(BATCH, 3, HEADS, 2, 2, 2)
    shares = torch.rand(BATCH, 3, HEADS, 2, 2, dtype=torch.float64)
    given = [part.double().requires_grad_() for part in (levels.join(maps).detach(), places, shares)]
    assert torch.autograd.gradcheck(lambda *parts: form(*parts, levels), given)


@pytest.mark.parametrize("form", FORMS)
def test_outside_lie_zeros(form: Form) -> None:
    maps = [torch.ones(BATCH, WIDTH, *shape) for shape in SHAPES]
    levels = Levels.of(maps, None)
    places, shares = some_points(levels, torch.float32)
    assert form(levels.join(maps), torch.full_like(places, -1.0), shares, levels).abs().max() == 0
    far = torch.full_like(places, 1e9)
    assert form(levels.join(maps), far, shares, levels).abs().max() == 0
    half = torch.zeros_like(places)
    half[..., 0] = -0.5
    torch.testing.assert_close(form(levels.join(maps), half, shares, levels), torch.full((BATCH, QUERIES, WIDTH), 0.5))


@pytest.mark.parametrize("form", [sample_by_bags, sample_by_gather])
def test_a_point_that_is_not_finite_spoils_its_own_query_only(form: Form) -> None:
    maps = some_maps(dtype=torch.float32)
    levels = Levels.of(maps, None)
    places, shares = some_points(levels, torch.float32)
    expected = form(levels.join(maps), places, shares, levels)
    places[1, 2] = torch.nan
    found = form(levels.join(maps), places, shares, levels)
    assert found[1, 2].isnan().all()
    expected[1, 2] = found[1, 2] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_its_points(form: Form, dtype: torch.dtype) -> None:
    maps = some_maps(dtype=torch.float32)
    levels = Levels.of(maps, None)
    places, shares = some_points(levels, torch.float32)
    expected = form(levels.join(maps), places, shares, levels)
    values = levels.join(maps).to(dtype).requires_grad_()
    found = form(values, places, shares, levels)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)
    found.float().sum().backward()
    assert values.grad is not None


def test_the_form_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = some_maps(dtype=torch.float32)
    levels = Levels.of(maps, None)
    places, shares = some_points(levels, torch.float32)
    given = (levels.join(maps), places, shares, levels)
    assert torch.equal(sample(*given), sample_by_bags(*given))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(sample(*given), sample_by_gather(*given))
    with torch.device("meta"):
        away = [part.to("meta") for part in given[:3]]
    monkeypatch.undo()
    with torch.device("meta"):
        elsewhere = Levels.of([part.to("meta") for part in maps], None)
    assert sample(*away, elsewhere).device.type == "meta"


def some_padding(shapes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """The last image is two thirds as high and half as wide as the canvas; the first fills it."""
    paddings = []
    for height, width in shapes:
        padding = torch.zeros(BATCH, height, width, dtype=torch.bool)
        padding[-1, -(-height * 2 // 3) :], padding[-1, :, -(-width // 2) :] = True, True
        paddings.append(padding)
    return paddings


def an_attention(levels: int = 3) -> DeformableAttention:
    attention = DeformableAttention(WIDTH, HEADS, levels=levels, points=POINTS)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def test_levels_say_how_cells_lie() -> None:
    shapes = ((6, 8), (3, 4))
    maps, paddings = some_maps(shapes), some_padding(shapes)
    levels = Levels.of(maps, paddings)
    assert levels.shapes == shapes
    assert levels.starts.tolist() == [0, 48]
    assert levels.sizes.tolist() == [[8, 6], [4, 3]]
    assert levels.padding is not None
    torch.testing.assert_close(levels.ratios[0], torch.ones(2, 2))
    torch.testing.assert_close(levels.ratios[1], torch.tensor([[0.5, 2 / 3], [0.5, 2 / 3]]))
    assert levels.join(maps)[1, 48 + 4 + 2].equal(maps[1][1, :, 1, 2])
    assert levels.padding[1].view(-1)[48 + 4 + 2]
    centres = levels.centres()
    torch.testing.assert_close(centres[0, 48 + 4 + 2], torch.tensor([2.5 / 4, 1.5 / 3]))
    torch.testing.assert_close(centres[1, 48 + 4 + 1], torch.tensor([1.5 / 2, 1.5 / 2]))
    # An encoder cell looks around itself.
    torch.testing.assert_close(levels.references(centres)[1, 48 + 4 + 1, 1], torch.tensor([1.5 / 4, 1.5 / 3]))
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]).expand(2, 1, 4)
    torch.testing.assert_close(levels.references(boxes)[1, 0, 0], torch.tensor([0.25, 1 / 3, 0.5, 2 / 3]))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_image_answers_alone_as_on_a_larger_canvas(coordinates: int) -> None:
    shapes, alone = ((6, 8), (3, 4), (1, 1)), ((4, 4), (2, 2), (1, 1))
    attention, query = an_attention(), torch.randn(BATCH, QUERIES, WIDTH)
    maps, points = some_maps(shapes, torch.float32), torch.rand(BATCH, QUERIES, coordinates)
    paddings = some_padding(shapes)
    small = [level[1:, :, :height, :width] for level, (height, width) in zip(maps, alone, strict=True)]
    for level, padding in zip(maps, paddings, strict=True):
        level.masked_fill_(padding.unsqueeze(1), 7.0)
    together = Levels.of(maps, paddings)
    found = attention(query, together.references(points), together.join(maps), together)
    apart = Levels.of(small, None)
    expected = attention(query[1:], apart.references(points[1:]), apart.join(small), apart)
    torch.testing.assert_close(found[1:], expected, atol=1e-6, rtol=1e-6)
    others = [level.clone() for level in maps]
    for level in others:
        level[0] = 9.0
    again = attention(query, together.references(points), together.join(others), together)
    torch.testing.assert_close(again[1:], found[1:], atol=1e-6, rtol=0)


def test_offsets_count_cells_around_points_and_parts_of_boxes() -> None:
    attention = DeformableAttention(8, 2, levels=1, points=1)
    nn.init.eye_(attention.value_proj.weight)
    nn.init.eye_(attention.output_proj.weight)
    nn.init.constant_(attention.sampling_offsets.bias, 1.0)
    ramp = torch.arange(40.0).view(1, 1, 5, 8).expand(1, 8, 5, 8)
    levels = Levels.of([ramp], None)

    def look(reference: list[float]) -> float:
        point = torch.tensor(reference).view(1, 1, -1)
        answer = attention(torch.zeros(1, 1, 8), levels.references(point), levels.join([ramp]), levels)
        return answer[0, 0, 0].item()

    # The centre of cell (x 3, y 2) is 3.5 / 8, 2.5 / 5; one cell further is x 4, y 3.
    assert look([3.5 / 8, 2.5 / 5]) == pytest.approx(3 * 8 + 4, abs=1e-4)
    # Half of the extent, of which a box of 2 by 4 cells has 1 and 2.
    assert look([3.5 / 8, 2.5 / 5, 2 / 8, 4 / 5]) == pytest.approx(4 * 8 + 4, abs=1e-4)


def test_it_starts_as_the_authors_do() -> None:
    attention = DeformableAttention(WIDTH, 4, levels=2, points=3)
    offsets = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    torch.testing.assert_close(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(offsets[1, 0], torch.tensor([[0, 1.0], [0, 2], [0, 3]]), atol=1e-6, rtol=0)
    assert attention.sampling_offsets.weight.abs().max() == 0
    assert attention.attention_weights.weight.abs().max() == 0
    assert attention.attention_weights.bias.abs().max() == 0
    assert 0.8 < attention.value_proj.weight.abs().max() / (6 / (2 * WIDTH)) ** 0.5 <= 1
    assert attention.output_proj.bias.abs().max() == 0
