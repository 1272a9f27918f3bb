"""a word -> the names behind it: what `ssldet list` prints."""

from typing import TYPE_CHECKING

from ssldet.registry import names

if TYPE_CHECKING:
    from ssldet.weights.zoo import Zoo

GROUP_OF = {
    "tasks": "ssldet.tasks",
    "recipes": "ssldet.recipes",
    "exporters": "ssldet.exporters",
    "sources": "ssldet.sources",
}


def list_names(what: str) -> "list[str] | Zoo":
    """List names that recipes and command lines accept.

    Args:
        what: `tasks`, `recipes`, `exporters`, `sources` (listed without importing anything), `backbones`, or `weights`.
    """
    if what == "backbones":
        from ssldet.nn.backbones import backbone_names

        return backbone_names()
    if what == "weights":
        from ssldet.weights.zoo import zoo

        return zoo()
    return names(GROUP_OF[what])
