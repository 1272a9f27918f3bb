"""preprocessor_config.json of transformers -> how images are sized: every entry is followed, or refused by name.

An image processor states how images become tensors. Its sizes are followed, rounded as transformers rounds them. What
ssldet does in one way only (RGB, bilinear, divided by 255, normalised by the numbers of the backbone, unpadded) must be
stated so, because a model that is shown other pixels gives other answers, and nothing in them tells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssldet.data.geometry import EvaluationSize, Sizing
from ssldet.errors import CheckpointError
from ssldet.escapes import shortened

SHORT_SIDE, LONG_SIDE = 800, 1333
"""Sizes where a processor states none."""
LARGEST_SIDE = 10_000
"""Side in pixels above which no detector can be meant."""
FAMILIES = "Detr", "ConditionalDetr", "DeformableDetr", "DabDetr"
"""Beginnings of the classes of processors that prepare images alike."""
KINDS = "ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"
BILINEAR = 2
"""Number of this filter in Pillow."""
ANY = {
    "do_convert_annotations", "format", "annotation_format", "processor_class", "data_format", "input_data_format",
    "return_tensors", "device", "default_to_square", "disable_grouping", "num_channels", "do_pad",
    "pad_and_return_pixel_mask", "max_size", "size", "do_resize", "resample", "image_mean", "image_std",
}  # fmt: skip
"""Entries that are read elsewhere or concern annotations and containers; and padding, for images of one size at a time
are shown without any, as transformers shows a single one."""
FIXED: dict[str, tuple[Any, str]] = {
    "do_rescale": (True, "pixels are divided by 255 here"),
    "do_normalize": (True, "images are normalised here"),
    "do_convert_rgb": (True, "images are converted to RGB here"),
    "do_center_crop": (False, "images are shown whole here"),
    "pad_size": (None, "images are not padded here"),
}
"""Entries that must have one value if they are stated -> that value, and why."""
REMEDY = "use transformers itself, or set it so in the file if the model was trained so"


@dataclass(frozen=True, kw_only=True)
class Processor:
    """How a folder of transformers wants images to be sized.

    Attributes:
        rule: See `EvaluationSize`.
        short_side: Short side in pixels; the default where the rule has none.
        long_side: Limit of the long side, likewise.
        size: Height and width in pixels, where the rule has them.
    """

    rule: Sizing = "transformers"
    short_side: int = SHORT_SIDE
    long_side: int = LONG_SIDE
    size: tuple[int, ...] = ()

    def sized(self) -> EvaluationSize:
        """Return what resizes images so."""
        return EvaluationSize(self.rule, self.short_side, self.long_side, self.size)


def processor_from(stated: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], where: Path) -> Processor:
    """Read an image processor.

    Args:
        stated: Contents of `preprocessor_config.json`.
        mean: By which the backbone here normalises images.
        std: Likewise.
        where: The file, named in messages.

    Raises:
        CheckpointError: An entry can't be followed; the message names every one, and what to do.
    """
    sides, problems = _sides(stated)
    problems += _misfits(stated, {"image_mean": list(mean), "image_std": list(std)})
    if problems:
        raise CheckpointError("\n".join(f"{where}: {problem}" for problem in problems))
    return sides


def document_of(rule: str, short_side: int, long_side: int, size: Sequence[int]) -> dict[str, Any]:
    """Return the entries `do_resize` and `size` of the processor that sizes images alike.

    Args:
        rule: See `EvaluationSize`; transformers rounds `detr` its own way where the long side is the limit.
        short_side: Short side in pixels.
        long_side: Limit of the long side.
        size: Height and width, where the rule has them.
    """
    if rule in {"fixed", "within"}:
        names = ("height", "width") if rule == "fixed" else ("max_height", "max_width")
        return {"do_resize": True, "size": dict(zip(names, size, strict=True))}
    return {"do_resize": rule != "original", "size": {"shortest_edge": short_side, "longest_edge": long_side}}


def _misfits(stated: Mapping[str, Any], own: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Yield what is wrong with entries other than the size."""
    kind = stated.get("image_processor_type", stated.get("feature_extractor_type"))
    if kind is not None and kind not in [family + ending for family in FAMILIES for ending in KINDS]:
        yield (
            f"image_processor_type is {shortened(kind)}, and only those of DETR and Deformable DETR are known; "
            + REMEDY
        )
    for name, numbers in own.items():
        if stated.get(name) is not None and stated[name] != numbers:
            yield f"{name} is {shortened(stated[name])}, but its backbone here has {numbers}; {REMEDY}"
    if stated.get("resample", BILINEAR) not in (BILINEAR, "bilinear"):
        yield f"resample is {shortened(stated['resample'])}, but images are resized by filter {BILINEAR} here; {REMEDY}"
    factor = stated.get("rescale_factor")
    if factor is not None and not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6):
        yield f"rescale_factor is {shortened(factor)}, but pixels are divided by 255 here; {REMEDY}"
    for name, (wanted, reason) in FIXED.items():
        if stated.get(name) is not None and stated[name] != wanted:
            yield f"{name} is {shortened(stated[name])}, but {reason}; {REMEDY}"
    for name, value in stated.items():
        known = name in ANY or name in FIXED or name in {"rescale_factor", "image_processor_type"}
        if not known and name != "feature_extractor_type" and value not in (None, False) and not name.startswith("_"):
            yield f"{name} is {shortened(value)}, and ssldet does not know what that changes; {REMEDY}"


def _sides(stated: Mapping[str, Any]) -> tuple[Processor, list[str]]:
    """Return the sizes, and what is wrong with them."""
    resizes = stated.get("do_resize")
    if resizes is False:
        return Processor(rule="original"), []
    if resizes not in (None, True):
        return Processor(), [f"do_resize is {shortened(resizes)}, neither true nor false; correct it"]
    size, limit = stated.get("size"), stated.get("max_size")
    if size is None:
        return Processor(), []
    if isinstance(size, int | float):
        size = {"shortest_edge": size, "longest_edge": LONG_SIDE if limit is None else limit}
    elif isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    given = {name: side for name, side in size.items() if side is not None} if isinstance(size, dict) else {}
    named = set(given)
    if wrong := [name for name, side in given.items() if not _is_side(side)]:
        return Processor(), [
            f"size is {shortened(size)}, whose {', '.join(wrong)} must be from 8 to {LARGEST_SIDE} pixels"
        ]
    if named == {"shortest_edge", "longest_edge"}:
        # A short side above the limit never decides.
        short = min(given["shortest_edge"], given["longest_edge"])
        return Processor(short_side=short, long_side=given["longest_edge"]), []
    if named == {"height", "width"}:
        return _boxed("fixed", given["height"], given["width"]), []
    if named == {"max_height", "max_width"}:
        return _boxed("within", given["max_height"], given["max_width"]), []
    return Processor(), [
        f"size is {shortened(stated['size'])}; it must hold shortest_edge and longest_edge, height and width, or "
        "max_height and max_width, else transformers itself prepares no image; state both"
    ]


def _boxed(rule: Sizing, height: int, width: int) -> Processor:
    return Processor(rule=rule, short_side=min(height, width), long_side=max(height, width), size=(height, width))


def _is_side(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 8 <= side <= LARGEST_SIDE
