"""pixels -> pixels: colour jitter, grey and blur for a whole batch at once, on any device.

Drawing and arithmetic are separate: a loader worker draws a small table of parameters (`draw_jitter`), and the device
applies it (`apply_jitter`). The table is part of the batch, so the changes of a patch can be read and repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ssldet.recipe import Within

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of the jitter table that hold the strengths of the colour operations, and their numbers in `ORDER`."""
ORDER = slice(4, 8)
"""Columns that hold which colour operation comes first, second, third and fourth."""
GREY, BLUR = 8, 9
"""Columns that hold 1 for a grey image, and the standard deviation of the blur in pixels (0 for none)."""
COLUMNS = 10

BLUR_RADIUS = 6
"""Half width of the blur kernel: three deviations of the strongest blur. Fixed, so that no row depends on others."""
NEGLIGIBLE = 1e-9
"""Weight of the blur kernel below which a pixel is left out."""
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Strength of the photometric changes; the defaults are those of UP-DETR's patches (half of SimCLR's jitter).

    Attributes:
        brightness: Brightness is multiplied by a factor from 1 - `brightness` to 1 + `brightness`.
        contrast: Likewise for the difference from the mean grey of the image.
        saturation: Likewise for the difference from the grey of each pixel.
        hue: Largest rotation of the colour wheel, in turns.
        probability: Probability that the four colour operations are applied, in random order.
        grey: Probability of conversion to grey.
        blur: Probability of a Gaussian blur.
        blur_low: Smallest deviation of the blur in pixels.
        blur_high: Largest deviation of the blur in pixels.
    """

    brightness: Annotated[float, Within(0, 1)] = 0.4
    contrast: Annotated[float, Within(0, 1)] = 0.4
    saturation: Annotated[float, Within(0, 1)] = 0.4
    hue: Annotated[float, Within(0, 0.5)] = 0.1
    probability: Annotated[float, Within(0, 1)] = 0.8
    grey: Annotated[float, Within(0, 1)] = 0.2
    blur: Annotated[float, Within(0, 1)] = 0.5
    blur_low: Annotated[float, Within(0.01, BLUR_RADIUS / 3)] = 0.1
    blur_high: Annotated[float, Within(0.01, BLUR_RADIUS / 3)] = 2.0

    @property
    def changes_pixels(self) -> bool:
        """Whether any image is ever changed."""
        return max(self.probability, self.grey, self.blur) > 0

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        if self.blur_low > self.blur_high:
            return [f"blur_low: {self.blur_low:g} is above blur_high {self.blur_high:g}; swap them"]
        return []


def draw_jitter(count: int, strength: Jitter, generator: torch.Generator) -> Float[Tensor, "N J"]:
    """Draw the parameters of some images; `apply_jitter` reads the columns.

    Args:
        count: Number of images (N).
        strength: Ranges and probabilities.
        generator: Source of all randomness.
    """
    draws = torch.rand(count, 8, generator=generator)
    table = torch.zeros(count, COLUMNS)
    spreads = torch.tensor([strength.brightness, strength.contrast, strength.saturation, strength.hue])
    centres = torch.tensor([1.0, 1.0, 1.0, 0.0])
    jittered = draws[:, 4:5] < strength.probability
    table[:, :4] = torch.where(jittered, centres + (2 * draws[:, :4] - 1) * spreads, centres)
    table[:, ORDER] = torch.rand(count, 4, generator=generator).argsort(dim=1).float()
    table[:, GREY] = (draws[:, 5] < strength.grey).float()
    sigma = strength.blur_low + draws[:, 7] * (strength.blur_high - strength.blur_low)
    table[:, BLUR] = torch.where(draws[:, 6] < strength.blur, sigma, 0.0)
    return table


def in_unit_range(pixels: UInt8[Tensor, "*N c H W"] | Float[Tensor, "*N c H W"]) -> Float[Tensor, "*N c H W"]:
    """Return pixels in 0..1, as floating ones are already."""
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def apply_jitter(
    pixels: UInt8[Tensor, "N c H W"] | Float[Tensor, "N c H W"], params: Float[Tensor, "N J"]
) -> Float[Tensor, "N c H W"]:
    """Apply to each image its drawn parameters: colour operations in the drawn order, then grey, then blur.

    Equal to torchvision's `adjust_*`, `rgb_to_grayscale` and `gaussian_blur` image by image. Images with other channels
    have no colour to change: brightness, contrast and blur alone apply.

    Args:
        pixels: Values in 0..255, or in 0..1 where floating.
        params: What `draw_jitter` drew.

    Returns:
        Values in 0..1.
    """
    # Mixed precision would round the sums below to 8 bits of mantissa.
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        images = torch.empty(pixels.shape, device=pixels.device)
        table = params.to(images, copy=True)
        if images.shape[1] != 3:
            table[:, [SATURATION, HUE, GREY]] = torch.tensor([1.0, 0.0, 0.0], device=table.device)
        if images.device.type == "cpu":
            for image, before, row in zip(images, pixels, table, strict=True):
                change_one(image.copy_(in_unit_range(before)), row)
        else:
            change_all(images.copy_(in_unit_range(pixels)), table)
        return images.to(pixels.dtype) if pixels.is_floating_point() else images


def change_one(image: Float[Tensor, "c H W"], row: Float[Tensor, " J"]) -> None:
    """Change one image in place: on a CPU, it stays in the cache from one operation to the next.

    What changes nothing is left out, and nothing is clamped that can't leave 0..1.

    Args:
        image: Values in 0..1.
        row: Its drawn parameters.
    """
    drawn, rests = row.tolist(), (1 - row).tolist()
    for operation in map(int, drawn[ORDER]):
        factor, rest = drawn[operation], rests[operation]
        if operation == HUE:
            if factor:
                image.copy_(_turn_hue(image, factor))
        elif factor != 1:
            if operation == CONTRAST:
                partner = _grey(image).mean() * rest
            elif operation == SATURATION:
                partner = _grey(image).mul_(rest)
            image.mul_(factor)
            if operation != BRIGHTNESS:
                image.add_(partner)
            if factor > 1:
                image.clamp_(0, 1)
    if drawn[GREY]:
        image.copy_(_grey(image).expand_as(image))
    if drawn[BLUR]:
        image.copy_(_blurred_one(image, drawn[BLUR]))


def change_all(images: Float[Tensor, "N c H W"], table: Float[Tensor, "N J"]) -> None:
    """Change all images in place by the same few operations, of which accelerators need no more than for one image.

    Args:
        images: Values in 0..1.
        table: Their drawn parameters.
    """
    on_cpu = table.cpu()  # the only wait for the device: which rows get which change
    for place in range(4):
        operation = table[:, ORDER][:, place].long()
        strength = table.gather(1, operation[:, None])[:, 0]
        _blend(images, operation, strength)
        _on_rows(images, (on_cpu[:, ORDER][:, place] == HUE) & (on_cpu[:, HUE] != 0), _turn_hue, strength)
    _on_rows(images, on_cpu[:, GREY] > 0, _without_colour, table[:, GREY])
    _on_rows(images, on_cpu[:, BLUR] > 0, _blurred, table[:, BLUR])


def _on_rows(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> None:
    rows = chosen.nonzero()[:, 0].to(images.device, non_blocking=True)
    if len(rows):
        images[rows] = change(images[rows], values[rows])


def _grey(images: Tensor) -> Tensor:
    if images.shape[-3] != 3:
        return images.mean(dim=-3, keepdim=True)
    red, green, blue = images.unbind(dim=-3)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(-3)


def _without_colour(images: Tensor, _: Tensor) -> Tensor:
    return _grey(images).expand_as(images)


def _blend(images: Tensor, operation: Tensor, strength: Tensor) -> None:
    """Mix each image with black, its mean grey or its grey version: brightness, contrast, saturation."""
    factor = torch.where(operation == HUE, 1.0, strength)[:, None, None, None]
    to_mean = (operation == CONTRAST)[:, None, None, None]
    to_grey = (operation == SATURATION)[:, None, None, None]
    grey = _grey(images)
    partner = grey * to_grey + grey.mean(dim=(2, 3), keepdim=True) * to_mean
    images.mul_(factor).add_(partner.mul_(1 - factor)).clamp_(0, 1)


def _turn_hue(images: Tensor, turns: Tensor | float) -> Tensor:
    """Rotate the colour wheel; the largest value v, the smallest one and the range r of the channels stay.

    In the HSV hexcone, a channel is v - clamp(d - r, 0, r), where d is r times the distance of the hue from the
    channel's own place on the wheel, in sixths of a turn. With s the sum of the channels, this distance is
    s - 2 · channel + v - 2 · smallest, in the direction of the larger neighbour: no division, and no sector to look up.

    Args:
        images: RGB in 0..1.
        turns: Turns of the wheel, from -0.5 to 0.5; one for each image, or one for all.
    """
    red, green, blue = images.unbind(dim=-3)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    high, low = torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)
    spread = high - low
    base = (red + green).add_(blue).add_(high).sub_(low, alpha=2)
    top, whole = high + spread, 6 * spread
    shift = whole * (turns[:, None, None] if isinstance(turns, Tensor) else turns)
    turned = torch.empty_like(images)
    channels = (red, green, blue)
    for place, (own, after, before) in enumerate(zip(channels, (green, blue, red), (blue, red, green), strict=True)):
        distance = torch.sub(base, own, alpha=2).copysign_(after - before).add_(shift).abs_()
        distance = torch.minimum(distance, whole - distance, out=distance)
        torch.clamp(torch.sub(top, distance, out=distance), low, high, out=turned.select(-3, place))
    return turned


def _blurred_one(image: Tensor, sigma: float) -> Tensor:
    """Blur one image along both axes, by sums of shifted images."""
    for axis in (-1, -2):
        size = image.shape[axis]
        radius = min(BLUR_RADIUS, size - 1)
        weights = torch.softmax(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2, dim=0)
        centre, *sides = weights[radius:].tolist()
        before, after = (image.narrow(axis, start, radius).flip(axis) for start in (1, size - 1 - radius))
        wide = torch.cat([before, image, after], dim=axis)
        image = image * centre
        for step, weight in enumerate(sides, start=1):
            if weight > NEGLIGIBLE:
                below, above = (wide.narrow(axis, radius + shift, size) for shift in (-step, step))
                image.add_(below + above, alpha=weight)
    return image


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur along both axes; one matrix product per axis, since every image has its own kernel."""
    rows, columns = (_blur_matrix(size, sigma) for size in images.shape[2:])
    return rows[:, None] @ images @ columns[:, None].mT


def _blur_matrix(size: int, sigma: Tensor) -> Tensor:
    """Return, for each deviation, the matrix that blurs a line of pixels, mirrored at its ends."""
    radius = min(BLUR_RADIUS, size - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    here = torch.arange(size, device=sigma.device)[:, None]
    reach = (here + offsets).abs()
    reach = torch.where(reach >= size, 2 * (size - 1) - reach, reach)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, reach.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, size, -1))
