import copy

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table_simple
from timm.models.beit import Beit

from ssldet.nn.backbones.positions import open_positions


@pytest.fixture
def beit() -> Beit:
    torch.manual_seed(0)
    body = Beit(
        img_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=2, use_abs_pos_emb=False, use_rel_pos_bias=True
    )
    for block in body.blocks:
        torch.nn.init.normal_(block.attn.relative_position_bias_table)
    return body.eval()


def test_its_own_size_gives_its_own_answer(beit: Beit) -> None:
    images = torch.randn(2, 3, 64, 64)
    expected = beit.forward_features(images)
    open_positions(beit)
    beit.forward_features(torch.randn(1, 3, 40, 90))
    torch.testing.assert_close(beit.forward_features(images), expected)


def test_another_size_gives_the_answer_of_a_model_built_for_it(beit: Beit) -> None:
    images = torch.randn(2, 3, 96, 96)
    built = Beit(
        img_size=96, patch_size=16, embed_dim=24, depth=2, num_heads=2, use_abs_pos_emb=False, use_rel_pos_bias=True
    ).eval()
    state = beit.state_dict()
    for name, value in state.items():
        if name.endswith("relative_position_bias_table"):
            state[name] = resize_rel_pos_bias_table_simple(value, (6, 6), (11 * 11 + 3, 2))
    built.load_state_dict(state)
    open_positions(beit)
    torch.testing.assert_close(beit.forward_features(images), built.forward_features(images))


def test_the_table_learns_from_images_of_any_shape_and_keeps_its_name(beit: Beit) -> None:
    names = list(beit.state_dict())
    open_positions(beit)
    twin = copy.deepcopy(beit)
    twin.forward_features(torch.randn(1, 3, 50, 100)).square().sum().backward()
    assert list(twin.state_dict()) == names
    assert all(block.attn.relative_position_bias_table.grad.abs().sum() > 0 for block in twin.blocks)
    assert all(block.attn.relative_position_bias_table.grad is None for block in beit.blocks)
