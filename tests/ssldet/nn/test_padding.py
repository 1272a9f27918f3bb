import torch
import torch.nn.functional as F

from ssldet.nn.padding import _nearest, is_padded, resize_padding


def test_padding_shrinks_as_by_nearest_interpolation() -> None:
    for size in [*range(1, 200), 333, 499, 681, 800, 1333]:
        for cells in {-(-size // 32), max(1, size // 32), -(-size // 8)}:
            wanted = F.interpolate(torch.arange(size).float()[None, None], size=cells)[0, 0]
            assert torch.equal(_nearest(size, cells, torch.device("cpu")).float(), wanted), (size, cells)


def test_padding_follows_the_map_whatever_its_size() -> None:
    padding = torch.zeros(2, 20, 30, dtype=torch.bool)
    assert not is_padded(padding)
    padding[1, 10:], padding[1, :, 20:] = True, True
    assert is_padded(padding)
    found = resize_padding(padding, torch.zeros(2, 5, 4, 6))
    assert not found[0].any()
    assert (~found[1]).nonzero().tolist() == [[row, column] for row in range(2) for column in range(4)]
