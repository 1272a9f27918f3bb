"""number of classes -> class names: how published detectors number COCO's classes, which their files don't state."""

RAW, CONTIGUOUS, RAW_PANOPTIC, CONTIGUOUS_PANOPTIC = 91, 80, 250, 133
"""Numbers of classes: all category ids up to the largest, or only those in use; things alone, or stuff too."""
STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff",
    138: "net", 141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road",
    151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel",
    171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind",
    181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged",
    197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged", 200: "rug-merged",
}  # fmt: skip
"""Category id -> name of COCO panoptic's stuff classes."""


def coco_things() -> dict[int, str]:
    """Return category id -> name of COCO's 80 classes of objects."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    named = enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    return {number: name for number, name in named if number and name != "N/A"}


def coco_numbering(num_classes: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and category ids of a head's classes, in its order.

    Args:
        num_classes: Classes of the head, "no object" not counted: 91 or 250 by category id, 80 or 133 contiguous.

    Returns:
        Name and category id of each class, the name empty where an id is not in use; empty for any other number,
        because such a head was trained on other classes.
    """
    things, everything = coco_things(), coco_things() | STUFF
    if num_classes in {RAW, RAW_PANOPTIC}:
        known = things if num_classes == RAW else everything
        return tuple(known.get(number, "") for number in range(num_classes)), tuple(range(num_classes))
    if num_classes in {CONTIGUOUS, CONTIGUOUS_PANOPTIC}:
        known = things if num_classes == CONTIGUOUS else everything
        return tuple(known.values()), tuple(known)
    return (), ()
