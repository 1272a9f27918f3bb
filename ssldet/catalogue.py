"""a word -> the names behind it: what `ssldet list` prints."""

from ssldet.registry import names

GROUP_OF = {
    "tasks": "ssldet.tasks",
    "recipes": "ssldet.recipes",
    "exporters": "ssldet.exporters",
    "sources": "ssldet.sources",
}


def list_names(what: str) -> list[str]:
    """List names that recipes and command lines accept.

    Args:
        what: `tasks`, `recipes`, `exporters`, `sources` (listed without importing anything) or `backbones`.
    """
    if what == "backbones":
        from ssldet.nn.backbones import backbone_names

        return backbone_names()
    return names(GROUP_OF[what])
