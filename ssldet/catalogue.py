"""kind of name -> the names that `ssldet list` prints, each with a line on what it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ssldet.errors import ConfigError, suggest
from ssldet.registry import GROUPS, names, remark, summary

if TYPE_CHECKING:
    from ssldet.weights.zoo import Zoo

GROUP_OF = {
    "tasks": "ssldet.tasks",
    "recipes": "ssldet.recipes",
    "detectors": "ssldet.detectors",
    "exporters": "ssldet.exporters",
    "importers": "ssldet.importers",
    "sources": "ssldet.sources",
    "loggers": "ssldet.loggers",
}
MOST_MEASURED = 12
"""Largest number of backbones that are measured for one pattern; each takes about half a second."""
COLUMNS = {
    "name": "name",
    "channels": "channels per level",
    "strides": "strides",
    "millions": "M parameters",
    "licence": "licence of weights",
}


@dataclass(frozen=True)
class NameTable:
    """Registered names.

    Attributes:
        rows: Name -> the first line of its docstring.
    """

    rows: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line per name."""
        width = max(map(len, self.rows))
        return "\n".join(f"{name:<{width}}  {about}".rstrip() for name, about in self.rows.items())

    def to_json(self) -> list[dict[str, str]]:
        """Return one dictionary per name, with the keys `name` and `about`."""
        return [{"name": name, "about": about} for name, about in self.rows.items()]


@dataclass(frozen=True)
class RecipeTable:
    """Recipes with what they are for and what they need; what a recipe does not state is left blank.

    Attributes:
        rows: One dictionary per recipe: `name`, `about`, the `device` it is made for, short sides of images in
            `pixels`, and the `time` that it takes, measured or published.
    """

    rows: Sequence[dict[str, str]]

    def __str__(self) -> str:
        """Return a line per recipe, and one below it that says what it does."""
        shown = ["name", "device", "pixels", "time"]
        cells = [shown, *([row[key] for key in shown] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        below = [f"    {row['about']}" if row["about"] else "" for row in self.rows]
        return "\n".join([lines[0], *(text for pair in zip(lines[1:], below, strict=True) for text in pair if text)])

    def to_json(self) -> list[dict[str, str]]:
        """Return the rows."""
        return list(self.rows)


@dataclass(frozen=True)
class BackboneTable:
    """Backbones with their channels, strides and sizes.

    Attributes:
        rows: One dictionary per backbone, with the keys of `COLUMNS` that are known, or with the reason in `refused`.
        note: A remark below the table.
    """

    rows: Sequence[dict[str, Any]]
    note: str

    def __str__(self) -> str:
        """Return one line per backbone."""
        lines = [COLUMNS, *self.rows] if any("channels" in row for row in self.rows) else self.rows
        cells = [[_cell(line.get(key, "")) for key in COLUMNS] for line in lines]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        shown = [
            "  ".join([row[0].ljust(widths[0]), f"refused: {line['refused']}"])
            if "refused" in line
            else "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row, line in zip(cells, lines, strict=True)
        ]
        return "\n".join([*shown, self.note])

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows."""
        return list(self.rows)


def list_names(what: str, pattern: str | None = None) -> "NameTable | RecipeTable | BackboneTable | Zoo":
    """List names that recipes and command lines accept.

    Args:
        what: `tasks`, `recipes`, `detectors`, `exporters`, `importers`, `sources`, `loggers` (listed without importing
            anything), `augmentations`, `backbones`, or `weights`.
        pattern: A shell pattern of the names; `None` lists all names, and of backbones one per family.

    Raises:
        ConfigError: No name fits the pattern.
    """
    if what == "backbones":
        return _backbones(pattern)
    if what == "weights":
        from ssldet.weights.zoo import Zoo, zoo

        return Zoo(tuple(entry for entry in zoo().entries if fnmatchcase(entry.name, pattern or "*")))
    if what == "augmentations":
        from ssldet.data.augmentations import augmentations

        lines = augmentations()
        return NameTable({name: lines[name] for name in _fitting(list(lines), pattern, "augmentation", what)})
    group, known = GROUP_OF[what], names(GROUP_OF[what])
    fitting = _fitting(known, pattern, GROUPS[group], what)
    if what == "recipes":
        return RecipeTable([_recipe(name) for name in fitting])
    return NameTable({name: summary(group, name) for name in fitting})


def _fitting(known: Sequence[str], pattern: str | None, noun: str, what: str) -> list[str]:
    """Return the names that fit a pattern.

    Raises:
        ConfigError: None does.
    """
    fitting = [name for name in known if fnmatchcase(name, pattern or "*")]
    if not fitting:
        raise ConfigError(f"no {noun} fits {pattern!r}{suggest(pattern or '', known)}; see: ssldet list {what}")
    return fitting


def _recipe(name: str) -> dict[str, str]:
    """Return what a recipe's docstring says: the first line, and what it needs."""
    device, pixels, time = (*remark("ssldet.recipes", name, "Needs"), "", "", "")[:3]
    about = summary("ssldet.recipes", name)
    return {"name": name, "device": device, "pixels": pixels, "time": time, "about": about}


def _backbones(pattern: str | None) -> BackboneTable:
    from ssldet.nn.backbones.families import TESTED, licence, matching
    from ssldet.nn.backbones.own import own_names

    if pattern is None:
        tested = [{**vars(family), "licence": licence(family.name)} for family in TESTED]
        note = "one of each tested family; 'ssldet list backbones PATTERN', such as 'timm/convnext*', measures others"
        return BackboneTable([*tested, *({"name": name} for name in own_names())], note)
    matched = matching(pattern)
    if len(matched) > MOST_MEASURED:
        note = f"{len(matched)} names; a pattern that fits {MOST_MEASURED} or fewer measures them"
        return BackboneTable([{"name": name} for name in matched], note)
    return BackboneTable(
        [_measured(name) for name in matched], "channels and strides from the finest level to the last"
    )


def _measured(name: str) -> dict[str, Any]:
    from ssldet.nn.backbones.families import describe, licence

    try:
        return {**vars(describe(name)), "licence": licence(name)}
    except ConfigError as error:
        return {"name": name, "refused": str(error)}


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
