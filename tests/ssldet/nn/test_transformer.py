import pytest
import torch
from torch import Tensor, nn

from ssldet.nn.transformer import Attention, Decoder, DecoderLayer, Encoder, EncoderLayer, Grouping

WIDTH, HEADS, HIDDEN = 12, 3, 20
BATCH, CELLS, QUERIES = 2, 11, 12


def randomise(module: nn.Module) -> None:
    """Give vectors values too, so that a lost bias or norm shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)


def some_padding() -> Tensor:
    padding = torch.zeros(BATCH, CELLS, dtype=torch.bool)
    padding[1, 7:] = True
    return padding


def a_decoder(layers: int = 2, *, pre_norm: bool = True) -> Decoder:
    decoder = Decoder(WIDTH, HEADS, HIDDEN, 0.0, layers=layers, pre_norm=pre_norm)
    randomise(decoder)
    return decoder


def test_attention_is_pytorchs() -> None:
    ours, theirs = Attention(WIDTH, HEADS, 0.0), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(BATCH, 5, WIDTH), torch.randn(BATCH, CELLS, WIDTH), torch.randn(BATCH, CELLS, WIDTH)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])
    padding = some_padding()
    expected = theirs(query, key, value, key_padding_mask=padding)[0]
    torch.testing.assert_close(ours(query, key, value, hidden=padding.unsqueeze(1)), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_is_pytorchs_where_nothing_has_a_position(pre_norm: bool) -> None:
    ours = EncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm=pre_norm)
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=pre_norm)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    cells, padding = torch.randn(BATCH, CELLS, WIDTH), some_padding()
    found = ours(cells, torch.zeros(1, CELLS, WIDTH), padding.unsqueeze(1))
    expected = theirs(cells, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_is_pytorchs_where_nothing_has_a_position(pre_norm: bool) -> None:
    ours = DecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm=pre_norm)
    theirs = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=pre_norm)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    content, cells, padding = torch.randn(BATCH, 5, WIDTH), torch.randn(BATCH, CELLS, WIDTH), some_padding()
    found = ours(content, torch.zeros_like(content), cells, cells, padding.unsqueeze(1))
    torch.testing.assert_close(found, theirs(content, cells, memory_key_padding_mask=padding))


def test_position_reaches_queries_and_keys_but_not_values() -> None:
    layer = EncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm=False)
    randomise(layer)
    cells, position = torch.randn(BATCH, CELLS, WIDTH), torch.randn(BATCH, CELLS, WIDTH)
    mixed = layer.self_attn(cells + position, cells + position, cells)
    middle = layer.norm1(cells + mixed)
    expected = layer.norm2(middle + layer.linear2(layer.linear1(middle).relu()))
    torch.testing.assert_close(layer(cells, position), expected)


def test_only_pre_norm_ends_the_encoder_with_a_norm() -> None:
    names = {pre: set(Encoder(WIDTH, HEADS, HIDDEN, 0.0, layers=1, pre_norm=pre).state_dict()) for pre in (False, True)}
    assert names[True] - names[False] == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_decoder_layer_answers_through_the_shared_norm(pre_norm: bool) -> None:
    decoder = a_decoder(3, pre_norm=pre_norm)
    content, position, cells = torch.zeros(2, 5, WIDTH), torch.randn(2, 5, WIDTH), torch.randn(2, CELLS, WIDTH)
    place = torch.randn(1, CELLS, WIDTH)
    answers = decoder(content, position, cells, place)
    assert answers.shape == (3, 2, 5, WIDTH)
    for layer, answer in zip(decoder.layers, answers, strict=True):
        content = layer(content, position, cells + place, cells)
        torch.testing.assert_close(answer, decoder.norm(content))


def test_what_padding_holds_does_not_matter() -> None:
    encoder = Encoder(WIDTH, HEADS, HIDDEN, 0.0, layers=2, pre_norm=True)
    decoder, padding = a_decoder(), some_padding()
    cells, place = torch.randn(BATCH, CELLS, WIDTH), torch.randn(BATCH, CELLS, WIDTH)
    query = torch.randn(BATCH, 5, WIDTH)

    def answer(cells: Tensor) -> Tensor:
        return decoder(torch.zeros_like(query), query, encoder(cells, place, padding), place, padding)

    changed = torch.where(padding.unsqueeze(-1), torch.full_like(cells, 7.0), cells)
    torch.testing.assert_close(answer(changed), answer(cells))


def test_no_padding_is_the_same_as_a_mask_of_nothing() -> None:
    encoder = Encoder(WIDTH, HEADS, HIDDEN, 0.0, layers=2, pre_norm=False)
    cells, place = torch.randn(BATCH, CELLS, WIDTH), torch.randn(1, CELLS, WIDTH)
    nothing = torch.zeros(BATCH, CELLS, dtype=torch.bool)
    torch.testing.assert_close(encoder(cells, place), encoder(cells, place, nothing))


SHUFFLED = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 2, 1])
GROUPS = {
    "3 of 4": torch.arange(12) // 4,
    "20 of 5": torch.arange(100) // 5,
    "30 of 10": torch.arange(300) // 10,
    "one query each": torch.arange(12),
    "one group": torch.zeros(12, dtype=torch.long),
    "shuffled": SHUFFLED,
    "any numbers": SHUFFLED * 7 - 3,
    "unequal": torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]),
    "unequal and shuffled": torch.tensor([0, 1, 0, 2, 0, 1]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_answer_as_if_a_mask_hid_the_others(name: str) -> None:
    """The form with a mask is the definition; the one without must equal it, gradients included."""
    groups, decoder = GROUPS[name], a_decoder()
    cells, place, padding = torch.randn(BATCH, CELLS, WIDTH), torch.randn(1, CELLS, WIDTH), some_padding()
    content = torch.randn(BATCH, len(groups), WIDTH)
    position = torch.randn(BATCH, len(groups), WIDTH)
    seed = torch.randn(2, BATCH, len(groups), WIDTH)

    def gradients(states: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((states * seed).sum(), list(decoder.parameters())))

    masked, states = Grouping(hidden=groups[:, None] != groups[None, :]), []
    current = content
    for layer in decoder.layers:
        current = layer(current, position, cells + place, cells, padding.unsqueeze(1), masked)
        states.append(current)
    expected = decoder.norm(torch.stack(states))
    found = decoder(content, position, cells, place, padding, groups)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(found), gradients(expected), atol=2e-3, rtol=1e-3)


def test_groups_of_one_size_need_no_mask() -> None:
    assert Grouping.of(GROUPS["one group"]) == Grouping()
    contiguous = Grouping.of(GROUPS["20 of 5"])
    assert (contiguous.count, contiguous.order, contiguous.hidden) == (20, None, None)
    shuffled = Grouping.of(SHUFFLED)
    assert shuffled.count == 3
    assert shuffled.hidden is None
    assert shuffled.order is not None
    assert SHUFFLED[shuffled.order].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_query_is_blind_to_other_groups_only() -> None:
    decoder, cells = a_decoder(), torch.randn(1, CELLS, WIDTH)
    content, position = torch.zeros(1, 12, WIDTH), torch.randn(1, 12, WIDTH)
    changed = position.clone()
    changed[:, 2] += 1
    before, after = (
        decoder(content, asked, cells, torch.zeros(1, CELLS, WIDTH), groups=SHUFFLED) for asked in (position, changed)
    )
    moved = (before - after).abs().amax((0, 1, 3)) > 1e-5
    assert moved.tolist() == (SHUFFLED[2] == SHUFFLED).tolist()


def test_matrices_start_as_detrs_do() -> None:
    encoder = Encoder(64, 4, 32, 0.0, layers=1, pre_norm=False)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
    assert encoder.layers[0].self_attn.in_proj_bias.abs().max() == 0
    assert encoder.layers[0].self_attn.out_proj.bias.abs().max() == 0


def test_dropout_acts_in_training_only() -> None:
    encoder = Encoder(WIDTH, HEADS, HIDDEN, 0.5, layers=1, pre_norm=True)
    cells, place = torch.randn(BATCH, CELLS, WIDTH), torch.zeros(1, CELLS, WIDTH)
    assert not torch.equal(encoder(cells, place), encoder(cells, place))
    encoder.eval()
    torch.testing.assert_close(encoder(cells, place), encoder(cells, place))
