"""Networks that are traced for images of any size: what such a trace needs other than a run does."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def traceable_padding() -> Iterator[None]:
    """Let timm's "same" padding, as in EfficientNet, be computed in whole numbers.

    timm divides a side by the stride as a fraction and rounds up. A trace carries the side as a symbol, whose
    expression then grows with each layer that pads, until simplifying it takes many minutes. Whole numbers give the
    same padding, and the expressions of all layers collapse into one division.
    """
    from timm.layers import padding

    original = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return by how many pixels a side is padded, so that a convolution gives one cell for each begun stride.

    Args:
        x: Pixels of the side; a symbol in a trace. The names are timm's.
        kernel_size: Pixels of the kernel along it.
        stride: Stride along it.
        dilation: Distance of the kernel's pixels.
    """
    # No division of negative numbers, which graphs round towards zero.
    reach = dilation * (kernel_size - 1) + 1
    missing = (x - 1) // stride * stride + reach - x
    return missing if reach >= stride else max(missing, 0)


@contextmanager
def silence() -> Iterator[None]:
    """Hide progress messages and warnings of torch's exporter, and of onnxruntime, which uses the root logger."""
    loggers = [logging.getLogger(name) for name in ("", "onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
