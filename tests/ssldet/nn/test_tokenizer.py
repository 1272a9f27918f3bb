"""The multi-scale tokenizer: what a cell sees, what a level gives away, and padding to whole patches."""

import pytest
import torch
import torch.nn.functional as F

from ssldet.nn.tokenizer import Tokenizer, pad_to


def test_levels_have_the_strides_and_channels() -> None:
    maps = Tokenizer((8, 16, 32), 12)(torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [(2, 12, 8, 12), (2, 12, 4, 6), (2, 12, 2, 3)]


def test_a_level_is_made_of_the_one_before_without_its_last_norm() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer((4, 8), 6)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    image = torch.randn(1, 3, 8, 16)
    first, second = tokenizer.patches
    norms, level_norms = tokenizer.norms, tokenizer.level_norms
    # By hand: each patch as a vector of its pixels.
    rows = F.unfold(image, 4, stride=4).transpose(1, 2) @ first.weight.flatten(1).T + first.bias
    rows = norms[0](rows)
    fine = level_norms[0](rows).transpose(1, 2).view(1, 6, 2, 4)
    again = F.unfold(rows.transpose(1, 2).view(1, 6, 2, 4), 2, stride=2).transpose(1, 2)
    coarse = level_norms[1](norms[1](again @ second.weight.flatten(1).T + second.bias)).transpose(1, 2).view(1, 6, 1, 2)
    for ours, expected in zip(tokenizer(image), (fine, coarse), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_cell_sees_its_own_patch_alone() -> None:
    tokenizer = Tokenizer((4, 8), 6)
    image = torch.randn(1, 3, 16, 16)
    changed = image.clone()
    changed[:, :, 8:12, 4:8] += 1
    for before, after, place in zip(tokenizer(image), tokenizer(changed), ((2, 1), (1, 0)), strict=True):
        moved = (before != after).any(1)[0]
        assert moved.nonzero().tolist() == [list(place)]


@pytest.mark.parametrize(("size", "wanted"), [((8, 8), (8, 8)), ((9, 16), (16, 16)), ((1, 15), (8, 16))])
def test_images_are_padded_at_the_bottom_and_the_right(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    padded = pad_to(torch.ones(1, 1, *size), 8, value=7.0)
    assert padded.shape[2:] == wanted
    assert (padded[:, :, : size[0], : size[1]] == 1).all()
    assert (padded == 7).sum() == padded.numel() - size[0] * size[1]
