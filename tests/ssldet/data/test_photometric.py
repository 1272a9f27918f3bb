import pickle

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from ssldet.data.photometric import (
    BLUR,
    BLUR_RADIUS,
    COLUMNS,
    CONTRAST,
    GREY,
    HUE,
    ORDER,
    SATURATION,
    Jitter,
    apply_jitter,
    change_all,
    draw_jitter,
)
from ssldet.errors import ConfigError
from ssldet.recipe import check, override


def one_by_one(pixels, params):
    """What the batched version must equal: torchvision, image by image."""
    operations = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    done = []
    for image, row in zip(pixels, params, strict=True):
        for operation in row[ORDER].int().tolist():
            image = operations[operation](image, row[operation].item())
        if row[GREY]:
            image = reference.rgb_to_grayscale(image, num_output_channels=3)
        if row[BLUR]:
            image = reference.gaussian_blur(image, [2 * BLUR_RADIUS + 1] * 2, [row[BLUR].item()] * 2)
        done.append(image)
    return torch.stack(done)


def test_equals_torchvision_image_by_image(generator):
    pixels = torch.rand(40, 3, 23, 31, generator=generator)
    pixels[0] = 0.5  # no hue at all
    pixels[1] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # pure colour
    pixels[2, :, ::2] = 0  # black lines
    params = draw_jitter(40, Jitter(probability=1.0), generator)
    torch.testing.assert_close(apply_jitter(pixels, params), one_by_one(pixels, params), atol=2e-5, rtol=0)


@pytest.mark.parametrize("hue", [-0.5, -0.31, -0.1, 0.02, 0.25, 0.5])
def test_hue_alone_equals_torchvision(hue, generator):
    pixels = (torch.randint(0, 5, (7, 3, 16, 16), generator=generator) / 4).float()  # many ties between channels
    params = torch.tensor([[1, 1, 1, hue, 0, 1, 2, 3, 0, 0]]).expand(7, -1)
    expected = torch.stack([reference.adjust_hue(image, hue) for image in pixels])
    torch.testing.assert_close(apply_jitter(pixels, params), expected, atol=1e-5, rtol=0)


def test_no_jitter_changes_no_bit(generator):
    pixels = torch.rand(5, 3, 8, 9, generator=generator)
    params = draw_jitter(5, Jitter(probability=0.0, grey=0.0, blur=0.0), generator)
    assert torch.equal(apply_jitter(pixels, params), pixels)


def test_input_is_left_alone_and_rows_do_not_depend_on_company(generator):
    pixels = torch.rand(6, 3, 20, 12, generator=generator)
    before = pixels.clone()
    params = draw_jitter(6, Jitter(blur=1.0), generator)
    together = apply_jitter(pixels, params)
    assert torch.equal(pixels, before)
    alone = torch.cat([apply_jitter(pixels[i : i + 1], params[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [3, 5])
def test_accelerators_change_all_images_as_a_cpu_changes_each(channels, generator):
    pixels = torch.rand(24, channels, 21, 34, generator=generator)
    params = draw_jitter(24, Jitter(hue=0.5, blur=0.7), generator)
    if channels != 3:
        params[:, [SATURATION, HUE, GREY]] = torch.tensor([1.0, 0.0, 0.0])
    together = pixels.clone()
    change_all(together, params)
    torch.testing.assert_close(apply_jitter(pixels, params), together, atol=5e-6, rtol=0)


def test_whole_numbers_count_as_their_shares_of_255(generator):
    pixels = torch.randint(256, (6, 3, 20, 12), dtype=torch.uint8, generator=generator)
    params = draw_jitter(6, Jitter(), generator)
    assert torch.equal(apply_jitter(pixels, params), apply_jitter(pixels / 255, params))


def test_blur_works_on_images_smaller_than_its_kernel(generator):
    pixels = torch.rand(2, 3, 1, 4, generator=generator)
    blurred = apply_jitter(pixels, draw_jitter(2, Jitter(blur=1.0, probability=0.0, grey=0.0), generator))
    assert blurred.shape == pixels.shape
    torch.testing.assert_close(blurred.mean((2, 3)), pixels.mean((2, 3)), atol=0.2, rtol=0)


def test_mixed_precision_does_not_coarsen_the_blur(generator):
    pixels = torch.rand(4, 3, 16, 16, generator=generator)
    params = draw_jitter(4, Jitter(blur=1.0), generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_jitter(pixels, params), apply_jitter(pixels, params))
        inside = apply_jitter(pixels, params)
    assert torch.equal(inside, apply_jitter(pixels, params))


def test_draws_follow_the_strengths(generator):
    table = draw_jitter(4000, Jitter(), generator)
    assert table.shape == (4000, COLUMNS)
    touched = (table[:, CONTRAST] != 1).float().mean()
    assert touched.item() == pytest.approx(0.8, abs=0.03)
    assert table[:, GREY].mean().item() == pytest.approx(0.2, abs=0.03)
    blurred = table[:, BLUR][table[:, BLUR] > 0]
    assert len(blurred) / 4000 == pytest.approx(0.5, abs=0.03)
    assert blurred.min() >= 0.1
    assert blurred.max() <= 2.0
    assert table[:, HUE].abs().max().item() == pytest.approx(0.1, abs=0.005)
    assert table[:, ORDER].sort(dim=1).values.unique(dim=0).tolist() == [[0, 1, 2, 3]]
    assert len(table[:, ORDER].unique(dim=0)) == 24


def test_zero_images(generator):
    table = draw_jitter(0, Jitter(), generator)
    assert apply_jitter(torch.zeros(0, 3, 8, 8), table).shape == (0, 3, 8, 8)


def test_strengths_are_a_checked_configuration():
    check(Jitter())
    assert pickle.loads(pickle.dumps(Jitter())) == Jitter()
    with pytest.raises(ConfigError, match="from 0 to 1"):
        override(Jitter(), {"grey": 2})
    with pytest.raises(ConfigError, match="swap"):
        check(Jitter(blur_low=1.5, blur_high=1.0))
