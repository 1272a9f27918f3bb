"""What users and authors of plug-ins call says in its docstring what it takes, and what it raises."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import ssldet
from ssldet import registry, testing
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.importing.base import Importer, Opened
from ssldet.loggers.base import LoggedRun, Logger
from ssldet.losses.set_prediction import set_prediction
from ssldet.nn.backbones.config import BackboneConfig
from ssldet.types import Problem

INTERFACES = (Detector, DetectorConfig, Importer, Opened, Logger, LoggedRun, BackboneConfig, Problem)
"""What authors of plug-ins implement, get or call, beside what `ssldet` itself exports."""
GROUPS = ("tasks", "detectors", "exporters", "sources", "loggers", "recipes")


def public() -> dict[str, Any]:
    """Return every public class and function by its full name, those that are registered included."""
    exported = [getattr(house, name) for house in (ssldet, testing) for name in house.__all__]
    exported = [set_prediction, *(thing for thing in exported if inspect.isclass(thing) or inspect.isfunction(thing))]
    plugged = [registry.find(f"ssldet.{group}", name) for group in GROUPS for name in registry.names(f"ssldet.{group}")]
    return {f"{thing.__module__}.{thing.__qualname__}": thing for thing in [*exported, *INTERFACES, *plugged]}


def functions(thing: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield name, function, and its docstring joined with those that it overrides."""
    if not inspect.isclass(thing):
        yield thing.__qualname__, thing, inspect.getdoc(thing) or ""
        return
    for name, member in vars(thing).items():
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(member):
            continue
        above = [getattr(base, name, None) for base in thing.__mro__]
        yield f"{thing.__qualname__}.{name}", member, "\n".join(inspect.getdoc(one) or "" for one in above if one)


def names_it(doc: str, name: str) -> bool:
    """Tell whether a docstring has an entry for a parameter or a field, alone or among several."""
    return re.search(rf"^\s*(`?\*{{0,2}}\w+`?, )*`?\*{{0,2}}{name}`?(, `?\w+`?)*:", doc, re.MULTILINE) is not None


def raises(function: Any) -> bool:
    """Tell whether the body raises something that callers may meet; `NotImplementedError` marks what to implement."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    return any("NotImplementedError" not in ast.unparse(one) for one in raised)


PUBLIC = public()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_what_is_public_says_what_it_takes_and_raises(name: str) -> None:
    thing, lacking = PUBLIC[name], []
    doc = inspect.getdoc(thing) or ""
    if not doc:
        lacking.append("a docstring")
    if dataclasses.is_dataclass(thing):
        own = [
            field.name for field in dataclasses.fields(thing) if field.name in vars(thing).get("__annotations__", {})
        ]
        lacking += [f"field {field}" for field in own if not names_it(doc, field)]
    for place, function, told in functions(thing):
        taken = [one for one in inspect.signature(function).parameters if one not in {"self", "cls"}]
        lacking += [f"{place}: {one}" for one in taken if not one.startswith("_") and not names_it(told, one)]
        if not told:
            lacking.append(f"{place}: a docstring")
        if raises(function) and "Raises:" not in told:
            lacking.append(f"{place}: Raises")
    assert lacking == []
