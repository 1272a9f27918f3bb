"""recipe -> every field that can be set: its value, what it accepts, and what it means."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.run import Run
from ssldet.hints import describe, hints_of
from ssldet.recipe import override, to_document
from ssldet.verbs.choosing import resolve
from ssldet.verbs.formats import formats_of_built

EXAMPLE = "optim.lr"
"""The field that shows how one is set."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a recipe.

    Attributes:
        path: What `--set` takes before the equals sign.
        value: The recipe's value.
        accepts: Type and bounds in words.
        about: What the field means; empty where nobody wrote that down.
    """

    path: str
    value: Any
    accepts: str
    about: str


@dataclass(frozen=True)
class Settings:
    """Every field of a recipe, in the order of `run.toml`."""

    recipe: str
    fields: tuple[Setting, ...]
    detector: DetectorConfig

    def __str__(self) -> str:
        """Return two lines a field, path, value and what it accepts, what it means; and the formats for export."""
        shown = next((one for one in self.fields if one.path == EXAMPLE), self.fields[0])
        how = f"such as --set {shown.path}={shown.value}"
        lines = [f"{self.recipe}: each of these {len(self.fields)} fields can be set, {how}", ""]
        for one in self.fields:
            lines.append(f"{one.path} = {one.value}  ({one.accepts})")
            lines += [f"    {one.about}"] if one.about else []
        return "\n".join([*lines, "", f"The detector {formats_of_built(self.detector)}"])

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dictionary per field."""
        return [asdict(one) for one in self.fields]


def show(recipe: str | Path | Run, *, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return what can be set in a recipe.

    Args:
        recipe: A recipe's name, the `run.toml` of a run, or a `Run`.
        overrides: Dotted fields and their values, such as another detector, which has other fields.

    Raises:
        ConfigError: There is no such recipe, or a value does not fit.
    """
    run = override(resolve(recipe), overrides or {})
    name = type(run.task).__name__ if isinstance(recipe, Run) else str(recipe)
    return Settings(name, tuple(_settings(run, "")), run.detector)


def _settings(config: Any, prefix: str) -> Iterator[Setting]:
    kind, values = type(config), to_document(config)
    about = _meanings(kind)
    if "name" in values and "name" not in hints_of(kind):
        words = f"a name from 'ssldet list {kind.group.removeprefix('ssldet.')}'"
        yield Setting(path=f"{prefix}name", value=values["name"], accepts=words, about="")
    for name, hint in hints_of(kind).items():
        value = getattr(config, name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            path, meaning = f"{prefix}{name}", about.get(name, "")
            yield Setting(path=path, value=values[name], accepts=describe(hint), about=meaning)


def _meanings(kind: type) -> dict[str, str]:
    """Read the section `Attributes` of the docstrings of a class and its bases; the class itself comes last."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        section = re.match(r"(?:    .*\n?|\n)*", text)
        for entry in re.split(r"^    (?=\w+:)", section[0] if section else "", flags=re.MULTILINE):
            name, colon, meaning = entry.partition(":")
            if colon:
                found[name] = " ".join(meaning.split())
    return found
