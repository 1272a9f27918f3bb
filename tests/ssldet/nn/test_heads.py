import torch

from ssldet.nn.heads import MLP, BoxHead


def test_names_are_those_of_detrs_files() -> None:
    assert list(BoxHead(6).state_dict()) == [f"layers.{n}.{kind}" for n in range(3) for kind in ("weight", "bias")]
    shapes = [tuple(value.shape) for value in MLP(6, 5, 7, depth=2).state_dict().values()]
    assert shapes == [(5, 6), (5,), (7, 5), (7,)]


def test_relu_between_layers_and_none_after_the_last() -> None:
    head = MLP(2, 3, 2, depth=2)
    states = torch.randn(4, 3, 2)
    expected = head.layers[1](head.layers[0](states).clamp(min=0))
    torch.testing.assert_close(head(states), expected)
    assert (expected < 0).any()


def test_boxes_lie_within_the_image() -> None:
    head = BoxHead(6)
    boxes = head(torch.randn(3, 2, 5, 6) * 50)
    assert boxes.shape == (3, 2, 5, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
