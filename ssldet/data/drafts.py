"""an opened JPEG -> one that is decoded at a half, a quarter or an eighth of its size, which takes less time.

A JPEG stores frequencies of blocks of 8 x 8 pixels; libjpeg can leave the high ones out, and make 4, 2 or 1 pixels of
each side. Pixels differ from those of an image that was decoded whole and resized, so that nothing does this by itself.
"""

from PIL import Image

from ssldet.data.orientation import exchanges_sides


def draft(image: Image.Image, short: int) -> tuple[int, int] | None:
    """Let a JPEG be decoded at 1/8, 1/4 or 1/2 of its size, the smallest whose short side has so many pixels or more.

    Args:
        image: An image as `Image.open` returns it, before `load`.
        short: Pixels of the short side that are wanted; 0 wants all.

    Returns:
        Height and width of the whole image, upright; `None` for an image that is decoded whole.
    """
    width, height = image.size
    if not short or image.format != "JPEG" or image.mode != "RGB" or min(width, height) < 2 * short:
        return None
    # Pillow takes the largest of 8, 4 and 2 by which both sides can be divided and are still as long.
    image.draft("RGB", (short, short))
    return (width, height) if exchanges_sides(image) else (height, width)
