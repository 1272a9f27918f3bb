"""an exporter -> the laws it must keep: what it writes is proven first, and nothing else is touched.

An exporter is a function of an objective, of what is known of it and of a path; it returns a report. A law looks at one
`ExportCase`; `check_exporter` runs all of them on a model that the format can hold.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssldet.errors import CheckpointError, ConfigError
from ssldet.importing.base import Candidate, importers
from ssldet.registry import find
from ssldet.task import Objective
from ssldet.testing.law import require

Exporter = Callable[[Objective, Mapping[str, Any], Path], Any]


@dataclass(frozen=True, kw_only=True)
class ExportCase:
    """What a law looks at.

    Attributes:
        exporter: Writes a model.
        objective: A small detector inside its task, which the format can hold.
        info: What is known of it: `task`, `detector`, `classes` and `category_ids` as plain values.
        out: Name of the file or folder, with the ending that the format wants.
        whole: Whether the format holds the whole detector and an importer reads it; false for a backbone alone, or a
            graph.
    """

    exporter: Exporter
    objective: Objective
    info: Mapping[str, Any]
    out: str
    whole: bool = True


ExportLaw = Callable[[ExportCase], None]


def check_exporter(
    exporter: str | Exporter, objective: Objective, info: Mapping[str, Any], out: str, *, whole: bool = True
) -> None:
    """Check every law of exporters.

    Args:
        exporter: Its registered name, or the function.
        objective: See `ExportCase`.
        info: See `ExportCase`.
        out: See `ExportCase`.
        whole: See `ExportCase`.

    Raises:
        AssertionError: A law is broken; the message says which and how.
    """
    found: Exporter = find("ssldet.exporters", exporter) if isinstance(exporter, str) else exporter
    case = ExportCase(exporter=found, objective=objective, info=info, out=out, whole=whole)
    for law in EXPORT_LAWS:
        law(case)


def it_writes_and_reports(case: ExportCase) -> None:
    """The file or folder is there, and the report can be printed and is plain values."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "deep" / case.out
        report = case.exporter(case.objective, case.info, out)
        require(out.exists(), f"no {case.out} was written")
        require(hasattr(report, "to_json"), f"the report, a {type(report).__name__}, has no `to_json`")
        try:
            json.dumps(report.to_json())
        except (TypeError, ValueError) as error:
            raise AssertionError(f"`to_json` of the report gives more than plain values: {error}") from error
        require(bool(str(report).strip()), "the report says nothing")


def it_overwrites_nothing(case: ExportCase) -> None:
    """What has the name already is refused with `ConfigError` and stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / case.out
        out.write_bytes(b"dear to somebody")
        try:
            case.exporter(case.objective, case.info, out)
        except ConfigError as error:
            require(bool(str(error).strip()), "the refusal says nothing")
        else:
            raise AssertionError("a name that was taken is not refused")
        kept = out.is_file() and out.read_bytes() == b"dear to somebody"
        require(kept, "what had the name was overwritten")
        require(_listed(folder) == [case.out], f"beside what had the name there is now {_listed(folder)}")


def it_proves_before_it_names(case: ExportCase) -> None:
    """The model is asked for answers to compare, and its file has no name until these are there."""
    named: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / case.out

        def note(*_: object) -> None:
            if not torch.compiler.is_compiling():
                named.append(out.exists())

        modules = [case.objective.detector, *case.objective.detector.children()]
        hooks = [module.register_forward_hook(note) for module in modules]
        try:
            case.exporter(case.objective, case.info, out)
        finally:
            for hook in hooks:
                hook.remove()
    require(bool(named), "the model was never asked for an answer: nothing is compared")
    require(not any(named), "the file had its name before the answers were compared")


def it_refuses_what_it_cannot_prove(case: ExportCase) -> None:
    """A model that answers NaN equals no copy: it is refused with `CheckpointError`, and nothing is left behind."""
    broken = deepcopy(case.objective)
    with torch.no_grad():
        for value in broken.detector.parameters():
            value.view(-1)[0] = torch.nan
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.exporter(broken, case.info, Path(folder) / case.out)
        except CheckpointError as error:
            require(bool(str(error).strip()), "the refusal says nothing")
        else:
            raise AssertionError("a model that answers NaN was written: the proof does not count")
        require(not _listed(folder), f"a refused export leaves {_listed(folder)} behind")


def it_leaves_the_model_alone(case: ExportCase) -> None:
    """Weights, modes and what is known of the model are the same after the export, in training as well."""
    for training in (True, False):
        case.objective.train(training)
        before, modes, info = _copied(case.objective), _modes(case.objective), deepcopy(dict(case.info))
        with tempfile.TemporaryDirectory() as folder:
            case.exporter(case.objective, case.info, Path(folder) / case.out)
        require(_modes(case.objective) == modes, "modules of the model are in another mode than before")
        require(dict(case.info) == info, "what is known of the model was changed")
        require(_same(before, case.objective.state_dict()), "weights of the model were changed")


def it_comes_back(case: ExportCase) -> None:
    """The importer that recognises what was written opens it with the same detector, classes and category ids."""
    if not case.whole:
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / case.out
        case.exporter(case.objective, case.info, out)
        candidate = Candidate(out)
        importer = next((one for one in importers() if one.recognises(candidate)), None)
        if importer is None:
            raise AssertionError("no importer recognises what was written; is it a backbone alone, or a graph?")
        opened = importer.open(candidate)
    same = _same(case.objective.detector.state_dict(), opened.objective.detector.state_dict())
    require(same, "the detector that comes back has other tensors")
    require(list(opened.classes) == list(case.info["classes"]), f"the classes come back as {opened.classes}")
    ids = list(opened.info["category_ids"])
    require(ids == list(case.info["category_ids"]), f"the category ids come back as {ids}")


EXPORT_LAWS: tuple[ExportLaw, ...] = (
    it_writes_and_reports,
    it_overwrites_nothing,
    it_proves_before_it_names,
    it_refuses_what_it_cannot_prove,
    it_leaves_the_model_alone,
    it_comes_back,
)
"""All laws of exporters."""


def _listed(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
