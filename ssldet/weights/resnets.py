"""state of a ResNet -> its name, from the number of blocks of each layer."""

from collections.abc import Iterable

DEPTHS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
"""Kind of block and blocks of each layer -> torchvision's name."""
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Position in a sequence made of a ResNet's children -> name of the child."""


def name_resnet(names: Iterable[str]) -> str | None:
    """Return torchvision's name of the network with these parameters; `None` where it is no plain ResNet.

    Args:
        names: Parameter names such as `layer1.0.conv1.weight`.
    """
    names = set(names)
    one, two, three, four = (
        len({name.split(".")[1] for name in names if name.startswith(f"layer{number}.")}) for number in range(1, 5)
    )
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return DEPTHS.get((kind, (one, two, three, four))) if "conv1.weight" in names else None
