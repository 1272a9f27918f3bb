from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ssldet.nn.deformable import DeformableAttention, Levels
from ssldet.nn.deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from ssldet.nn.transformer import Grouping

WIDTH, HEADS, HIDDEN, POINTS = 12, 3, 20, 2
BATCH, QUERIES = 2, 12
SHAPES = ((4, 6), (2, 3))
CELLS = 30
SHUFFLED = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 2, 1])


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)


def some_levels() -> tuple[Levels, Tensor]:
    maps = [torch.randn(BATCH, WIDTH, *shape) for shape in SHAPES]
    paddings = []
    for height, width in SHAPES:
        padding = torch.zeros(BATCH, height, width, dtype=torch.bool)
        padding[1, :, width * 2 // 3 :] = True
        paddings.append(padding)
    levels = Levels.of(maps, paddings)
    return levels, levels.join(maps)


def an_encoder(*, pre_norm: bool) -> DeformableEncoder:
    return DeformableEncoder(WIDTH, HEADS, HIDDEN, 0.0, layers=2, levels=2, points=POINTS, pre_norm=pre_norm)


def a_decoder(*, pre_norm: bool = False, refine: bool = False, layers: int = 3) -> DeformableDecoder:
    decoder = DeformableDecoder(
        WIDTH, HEADS, HIDDEN, 0.0, layers=layers, levels=2, points=POINTS, pre_norm=pre_norm, refine=refine
    )
    randomise(decoder)
    return decoder


def locate(layer: int, states: Tensor, reference: Tensor) -> Tensor:
    return (states[..., :4] + layer + reference.mean(-1, keepdim=True)).sigmoid()


def queries() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, QUERIES, WIDTH), torch.rand(BATCH, QUERIES, 2)


def test_an_encoder_layer_is_its_formula_after_and_before_norms() -> None:
    levels, cells = some_levels()
    position, reference = torch.randn(BATCH, CELLS, WIDTH), levels.references(levels.centres())
    for pre_norm in (False, True):
        layer = DeformableEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, levels=2, points=POINTS, pre_norm=pre_norm)
        randomise(layer)

        def feed(states: Tensor, layer: DeformableEncoderLayer = layer) -> Tensor:
            return layer.linear2(layer.linear1(states).relu())

        if pre_norm:
            value = layer.norm1(cells)
            middle = cells + layer.self_attn(value + position, reference, value, levels)
            expected = middle + feed(layer.norm2(middle))
        else:
            middle = layer.norm1(cells + layer.self_attn(cells + position, reference, cells, levels))
            expected = layer.norm2(middle + feed(middle))
        torch.testing.assert_close(layer(cells, position, reference, levels), expected)


def test_a_decoder_layer_is_its_formula_after_and_before_norms() -> None:
    levels, cells = some_levels()
    content, position, points = queries()
    reference = levels.references(points)
    for pre_norm in (False, True):
        layer = DeformableDecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, levels=2, points=POINTS, pre_norm=pre_norm)
        randomise(layer)

        def feed(states: Tensor, layer: DeformableDecoderLayer = layer) -> Tensor:
            return layer.linear2(layer.linear1(states).relu())

        if pre_norm:
            value = layer.norm2(content)
            mixed = content + layer.self_attn(value + position, value + position, value)
            seen = mixed + layer.cross_attn(layer.norm1(mixed) + position, reference, cells, levels)
            expected = seen + feed(layer.norm3(seen))
        else:
            placed = content + position
            mixed = layer.norm2(content + layer.self_attn(placed, placed, content))
            seen = layer.norm1(mixed + layer.cross_attn(mixed + position, reference, cells, levels))
            expected = layer.norm3(seen + feed(seen))
        torch.testing.assert_close(layer(content, position, reference, cells, levels), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_what_padding_holds_does_not_matter(pre_norm: bool) -> None:
    levels, cells = some_levels()
    assert levels.padding is not None
    encoder, position = an_encoder(pre_norm=pre_norm), torch.randn(1, CELLS, WIDTH)
    changed = torch.where(levels.padding.unsqueeze(-1), torch.full_like(cells, 7.0), cells)
    before, after = encoder(cells, position, levels), encoder(changed, position, levels)
    torch.testing.assert_close(after[~levels.padding], before[~levels.padding])
    decoder = a_decoder(pre_norm=pre_norm)
    content, place, points = queries()
    answers = [decoder(content, place, points, given, levels, locate) for given in (before, after)]
    torch.testing.assert_close(answers[0], answers[1])


def test_only_pre_norm_ends_the_stacks_with_a_norm() -> None:
    for make in (an_encoder, a_decoder):
        names = {pre: set(make(pre_norm=pre).state_dict()) for pre in (False, True)}
        assert names[True] - names[False] == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("refine", [False, True])
def test_layers_look_around_the_boxes_before_only_if_they_refine(refine: bool, pre_norm: bool) -> None:
    decoder = a_decoder(refine=refine, pre_norm=pre_norm)
    levels, cells = some_levels()
    content, position, reference = queries()
    states, boxes = decoder(content, position, reference, cells, levels, locate)
    assert states.shape == (3, BATCH, QUERIES, WIDTH)
    for number, layer in enumerate(decoder.layers):
        content = layer(content, position, levels.references(reference), cells, levels)
        torch.testing.assert_close(states[number], decoder.norm(content))
        expected = locate(number, states[number], reference)
        torch.testing.assert_close(boxes[number], expected)
        reference = expected if refine else reference


def test_a_box_to_look_around_passes_no_gradient_back() -> None:
    decoder = a_decoder(refine=True, layers=2)
    levels, cells = some_levels()
    content, position, reference = queries()
    scale = torch.ones((), requires_grad=True)

    def scaled(layer: int, states: Tensor, reference: Tensor) -> Tensor:
        return (states[..., :4].detach() * (scale if layer == 0 else 1)).sigmoid()

    _, boxes = decoder(content, position, reference, cells, levels, scaled)
    assert not boxes[1].requires_grad or torch.autograd.grad(boxes[1].sum(), scale, retain_graph=True)[0] == 0
    assert torch.autograd.grad(boxes[0].sum(), scale)[0] != 0


def groups() -> Iterator[Tensor]:
    yield torch.arange(12) // 4
    yield SHUFFLED
    yield torch.tensor([0, 1, 0, 2, 0, 1, 1, 1, 2, 2, 0, 0])


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("groups", list(groups()), ids=["contiguous", "shuffled", "unequal"])
def test_groups_answer_as_if_a_mask_hid_the_others(groups: Tensor, refine: bool) -> None:
    decoder = a_decoder(refine=refine)
    levels, cells = some_levels()
    content, position, reference = queries()
    found, boxes = decoder(content, position, reference, cells, levels, locate, groups)
    masked = Grouping(hidden=groups[:, None] != groups[None, :])
    for number, layer in enumerate(decoder.layers):
        content = layer(content, position, levels.references(reference), cells, levels, masked)
        torch.testing.assert_close(found[number], content, atol=1e-5, rtol=1e-4)
        box = locate(number, content, reference)
        torch.testing.assert_close(boxes[number], box, atol=1e-5, rtol=1e-4)
        reference = box if refine else reference


def test_stacks_start_as_the_authors_do() -> None:
    decoder = DeformableDecoder(64, 4, 32, 0.0, layers=1, levels=2, points=POINTS, pre_norm=False, refine=False)
    attentions = [part for part in decoder.modules() if isinstance(part, DeformableAttention)]
    assert [float(part.attention_weights.weight.detach().abs().max()) for part in attentions] == [0]
    assert float(attentions[0].sampling_offsets.weight.detach().abs().max()) == 0
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name


def test_dropout_acts_in_training_only() -> None:
    encoder = DeformableEncoder(WIDTH, HEADS, HIDDEN, 0.5, layers=1, levels=2, points=POINTS, pre_norm=True)
    levels, cells = some_levels()
    place = torch.zeros(1, CELLS, WIDTH)
    assert not torch.equal(encoder(cells, place, levels), encoder(cells, place, levels))
    encoder.eval()
    torch.testing.assert_close(encoder(cells, place, levels), encoder(cells, place, levels))
