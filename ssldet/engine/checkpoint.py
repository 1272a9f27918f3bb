"""Objective <-> weights/model.safetensors, and the hand-over of sections from one detector to another.

A weights file holds the whole state of an objective, and in its header what is needed to build that objective again:
task, detector, class names, and a digest of the tensors, because the format itself does not notice a flipped bit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ssldet.classes import ClassRows
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.disk import Disk, write_whole
from ssldet.documents import OddDocumentError, parse_json_object
from ssldet.engine.description import SCHEMA
from ssldet.engine.rows import QueryRows, class_tensors, query_tensors, section_of
from ssldet.errors import CheckpointError, reason_of, suggest
from ssldet.escapes import shortened
from ssldet.recipe import from_document
from ssldet.regular import enough_files, require_regular
from ssldet.report.notebook import card
from ssldet.states import few, infinite, misfits
from ssldet.task import Objective, Task
from ssldet.weights.statement import odd_entries

HEADER = "ssldet"
"""Key of our entry in the header."""

COUNTER = ".num_batches_tracked"
"""What free norms count and fixed ones don't have: it changes nothing, and may be missing on either side."""

NEVER_ABSENT = ("task", "detector", "classes")
"""Entries that every header holds."""

Outcome = Literal["loaded", "fresh", "reshaped", "ignored"]


def save_weights(path: Path, objective: Objective, info: Mapping[str, Any]) -> None:
    """Write the weights of an objective, whole or not at all.

    Args:
        path: A `.safetensors` file.
        objective: What to write, on any device.
        info: What the header states; see `describe`.
    """
    # Cloned, because tensors that share memory, such as tied heads, are refused by the format.
    state = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in objective.state_dict().items()}
    header = {**info, "digest": _digest(state)}
    content = save(state, metadata={HEADER: json.dumps(header)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, Disk())


def load_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a weights file; no code in it can run.

    Args:
        path: A `.safetensors` file written by `save_weights`.

    Returns:
        What the header states, and the tensors by name.

    Raises:
        CheckpointError: It is missing, cut short, damaged, foreign, or from another version.
    """
    path = Path(path)
    if not path.exists():
        siblings = [other.name for other in path.parent.glob("*.safetensors")]
        raise CheckpointError(f"{path}: no such weights file{suggest(path.name, siblings)}")
    try:
        require_regular(path)
        with enough_files(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except RuntimeError as error:  # of the system
        raise CheckpointError(f"{path}: can't be opened ({error})") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({reason_of(error)}); copy it again") from error
    if HEADER not in metadata:
        raise CheckpointError(f"{path}: not written by ssldet; its header does not say which detector it is")
    try:
        info = parse_json_object(metadata[HEADER])
    except OddDocumentError as error:
        raise CheckpointError(f"{path}: its header can't be read ({error})") from error
    if not isinstance(info, dict):
        raise CheckpointError(f"{path}: its header holds no description of a detector; copy the file again")
    if info.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: has schema {shortened(info.get('schema'))}, this ssldet reads {SCHEMA}; use the version that "
            "wrote it"
        )
    if info.get("digest") != _digest(state):
        raise CheckpointError(f"{path}: damaged, the tensors don't match their digest; copy it again or export anew")
    if wrong := infinite(state):
        raise CheckpointError(f"{path}: can't be used: {few(wrong)}; go back to an earlier file")
    if odd := [*(name for name in NEVER_ABSENT if name not in info), *odd_entries(info)]:
        raise CheckpointError(f"{path}: its header holds no usable {', '.join(odd)}; copy the file again")
    return info, state


def restore_objective(path: str | Path) -> tuple[Objective, dict[str, Any]]:
    """Build the objective that a weights file describes, with its weights.

    Args:
        path: A `.safetensors` file written by `save_weights`.

    Returns:
        The objective on the CPU, and what the header states.

    Raises:
        CheckpointError: The file can't be used, or does not fit what it says it is.
        ConfigError: The task or the detector that it names is not installed.
    """
    info, state = load_weights(path)
    task = from_document(Task, info["task"])  # type: ignore[type-abstract]
    config = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    objective = task.objective(config.build())
    load_exactly(objective, state, str(path))
    return objective, info


def load_exactly(objective: Objective, state: Mapping[str, Tensor], where: str) -> None:
    """Give an objective every tensor that it has, and no other.

    Args:
        objective: Receives.
        state: Tensors by name.
        where: Names the origin in a message.

    Raises:
        CheckpointError: A name is missing or too many, a shape differs, or a number is not finite; lists the first.
    """
    wrong = misfits(objective.state_dict(), state) + infinite(state)
    if wrong:
        raise CheckpointError(f"{where}: does not fit this detector and task: {few(wrong)}")
    objective.load_state_dict(dict(state))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of some tensors of a section.

    Attributes:
        section: Section of the detector, or part of the task's objective; empty for tensors that belong to none.
        outcome: What became of them.
        tensors: How many there are.
        parameters: Numbers in them.
    """

    section: str
    outcome: Outcome
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What a hand-over did.

    Attributes:
        rows: One entry for each section and outcome.
        classes: Which rows of the class head were handed over by class, where they were.
        queries: How many queries there were and are, where that differs.
    """

    rows: tuple[Row, ...]
    classes: ClassRows | None = None
    queries: QueryRows | None = None

    def count(self, outcome: Outcome) -> tuple[int, int]:
        """Return (tensors, parameters) with an outcome.

        Args:
            outcome: `loaded`: as handed over. `fresh`: not handed over, starts anew. `reshaped`: offered in another
                shape or order; starts anew but for the rows that `classes` and `queries` name. `ignored`: offered and
                not used.
        """
        rows = [row for row in self.rows if row.outcome == outcome]
        return sum(row.tensors for row in rows), sum(row.parameters for row in rows)

    def summary(self) -> list[str]:
        """Return one line for each section and outcome."""
        special = [("class head", self.classes), ("queries", self.queries)]
        return [
            f"{row.outcome:9}{row.section or 'other':13} {row.tensors:4} tensors {row.parameters:12,} parameters"
            for row in self.rows
        ] + [f"{what}: {how}" for what, how in special if how]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        classes = {} if self.classes is None else {"classes": self.classes.to_json()}
        queries = {} if self.queries is None else {"queries": self.queries.to_json()}
        return {"rows": [vars(row) for row in self.rows], **classes, **queries}

    def __str__(self) -> str:
        """Say it in lines."""
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        """Say it as a table in a notebook."""
        lost = sum(row.tensors for row in self.rows if row.outcome in {"reshaped", "ignored"})
        header = ("section", "outcome", "tensors", "parameters")
        rows = [(row.section or "other", row.outcome, row.tensors, row.parameters) for row in self.rows]
        text = [f"{what}: {how}" for what, how in (("class head", self.classes), ("queries", self.queries)) if how]
        return card("Handed over", text=text, grade="so" if lost else "good", table=[header, *rows])


def transfer_sections(
    state: Mapping[str, Tensor],
    detector: Detector,
    sections: Sequence[str],
    *,
    expects_fresh: Sequence[str] = (),
    class_rows: ClassRows | None = None,
) -> TransferReport:
    """Hand sections over to a detector, and account for every tensor on both sides.

    Args:
        state: State of another detector, by the same names.
        detector: Receives, in place.
        sections: What is handed over; each must arrive complete.
        expects_fresh: Sections of those that start anew all the same, such as the class head for other classes.
        class_rows: Hand the class head over row by row, by the names of the classes; a row for "no object" goes along.
            `None` hands it over as it is, like any section.

    Where the detector has another number of queries, the first ones are handed over, as many as both have; further ones
    stay as the detector drew them.

    Raises:
        CheckpointError: A tensor of a handed-over section is missing, too many, of another shape or not finite, or the
            class names don't fit the heads; nothing has been changed then.
    """
    own = detector.state_dict()
    wanted = [section for section in sections if section not in set(expects_fresh)]
    by_class = class_tensors(state, own, detector, class_rows) if class_rows and "class_head" in wanted else {}
    by_query, queries = query_tensors(state, own, detector) if "queries" in wanted else ({}, None)
    moved = by_class | by_query
    offered = {**state, **moved}
    outcomes: dict[str, Outcome] = {}
    counters = {name for name in own.keys() ^ state.keys() if name.endswith(COUNTER)}
    for name in [*own, *(name for name in state if name not in own)]:
        if section_of(detector, name) in wanted and name not in counters:
            outcomes[name] = "reshaped" if name in moved else "loaded"
        elif name not in own:
            outcomes[name] = "ignored"
        else:
            reshaped = name in state and state[name].shape != own[name].shape
            outcomes[name] = "reshaped" if reshaped else "fresh"
    moving = [name for name, outcome in outcomes.items() if outcome == "loaded" or name in moved]
    given = {name: offered[name] for name in moving if name in offered}
    if surprises := misfits({name: own[name] for name in moving if name in own}, given) + infinite(given):
        raise CheckpointError(f"the hand-over of {', '.join(wanted)} does not fit: {few(surprises)}")
    with torch.no_grad():
        for name in moving:
            own[name].copy_(given[name])
    rows = _rows(detector, outcomes, {**state, **own})
    return TransferReport(rows=rows, classes=class_rows if by_class else None, queries=queries)


def inherit(theirs: Objective, ours: Objective, parts: Iterable[str]) -> tuple[Row, ...]:
    """Take over parts of an objective that the task owns, from an objective that has them.

    Args:
        theirs: The model that a run starts from.
        ours: Receives, in place.
        parts: Names of submodules; one that the start has not stays fresh.

    Returns:
        What became of each part.

    Raises:
        CheckpointError: A part fits only partly, or is not finite; nothing has been changed then.
    """
    rows: list[Row] = []
    taken: dict[str, Tensor] = {}
    surprises: list[str] = []
    for part in parts:
        own = {f"{part}.{name}": value for name, value in ours.get_submodule(part).state_dict().items()}
        module = getattr(theirs, part, None)
        given = {} if module is None else {f"{part}.{name}": value for name, value in module.state_dict().items()}
        if given:
            surprises += misfits(own, given) + infinite(given)
        taken |= given
        size, outcome = sum(value.numel() for value in own.values()), "loaded" if given else "fresh"
        rows.append(Row(section=part, outcome=outcome, tensors=len(own), parameters=size))  # type: ignore[arg-type]
    if surprises:
        raise CheckpointError(f"what the task takes over from the start does not fit: {few(surprises)}")
    ours.load_state_dict(taken, strict=False)
    return tuple(rows)


def _rows(detector: Detector, outcomes: Mapping[str, Outcome], tensors: Mapping[str, Tensor]) -> tuple[Row, ...]:
    members: dict[tuple[str, Outcome], list[int]] = {}
    for name, outcome in outcomes.items():
        members.setdefault((section_of(detector, name), outcome), []).append(tensors[name].numel())
    return tuple(
        Row(section=section, outcome=outcome, tensors=len(sizes), parameters=sum(sizes))
        for (section, outcome), sizes in members.items()
    )


def _digest(state: Mapping[str, Tensor]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name]
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
