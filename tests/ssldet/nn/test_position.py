import math

import torch

from ssldet.nn.position import SinePosition


def padding_of(*sizes: tuple[int, int], canvas: tuple[int, int] = (5, 7)) -> torch.Tensor:
    padding = torch.ones(len(sizes), *canvas, dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        padding[image, :height, :width] = False
    return padding


def test_every_value_by_the_formula_of_the_paper() -> None:
    position = SinePosition(12)(padding_of((5, 7), (3, 4)))
    assert position.shape == (2, 5, 7, 12)
    for image, (height, width) in enumerate([(5, 7), (3, 4)]):
        for y in range(height):
            for x in range(width):
                for axis, (count, last) in enumerate([(y + 1, height), (x + 1, width)]):
                    for pair in range(3):
                        angle = 2 * math.pi * count / (last + 1e-6) / 10_000 ** (2 * pair / 6)
                        cell = position[image, y, x, 6 * axis + 2 * pair :][:2]
                        expected = torch.tensor([math.sin(angle), math.cos(angle)])
                        torch.testing.assert_close(cell, expected, atol=1e-5, rtol=1e-4)


def test_position_is_relative_to_the_image_not_to_the_canvas() -> None:
    alone = SinePosition(8)(padding_of((3, 4), canvas=(3, 4)))
    padded = SinePosition(8)(padding_of((3, 4), canvas=(5, 7)))
    torch.testing.assert_close(padded[:, :3, :4], alone)


def test_every_cell_has_its_own_position() -> None:
    cells = SinePosition(16)(padding_of((5, 7))).flatten(0, 2)
    distance = torch.cdist(cells, cells) + torch.eye(len(cells)) * 9
    assert distance.min() > 0.05
    assert cells.isfinite().all()
