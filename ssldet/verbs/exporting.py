"""RUN | FILE -> other people's formats, on this machine or in a repository of the Hugging Face hub."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ssldet.detectors.base import DetectorConfig
from ssldet.disk import require_absent
from ssldet.errors import CheckpointError, ConfigError
from ssldet.importing.base import Opened
from ssldet.recipe import from_document
from ssldet.registry import find_or_import, names
from ssldet.regular import read_text
from ssldet.verbs.formats import formats_of
from ssldet.verbs.opening import Step, Which, open_trained
from ssldet.verbs.using import evaluate
from ssldet.weights.hub import HubName, hub_name, is_on_hub, published, writable

log = logging.getLogger(__name__)

OWN = "safetensors"
"""The exporter of what is sent to a repository: a file that states its architecture, and opens again as what it was."""
CARD_HEADING = "## Use\n"
MOST_FIGURES = 3
"""How many figures are compared on a terminal: of detection AP, AP50 and AP75."""


@runtime_checkable
class Exported(Protocol):
    """What an exporter says when it is done; printing it shows the proof."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        ...


@dataclass(frozen=True)
class Published:
    """A model in a repository.

    Attributes:
        place: The repository.
        address: Its page.
        report: What the exporter proved before anything was sent.
    """

    place: HubName
    address: str
    report: Exported

    def __str__(self) -> str:
        """Return what was sent where, and what is still up to its owner."""
        return (
            f"{self.report}\nsent to {self.address} with its model card; a new repository is private, its licence "
            f"'other' until its owner chooses one\nopen it with: ssldet predict {self.place} IMAGES"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self.report.to_json() | {"out": str(self.place), "address": self.address}


@dataclass(frozen=True)
class Measured:
    """An exported file, and what it and the model that it was made from measure on the same images.

    Attributes:
        report: What the exporter proved.
        data: On what they were measured.
        before: Figures of the model by name.
        after: Those of the exported file.
    """

    report: Exported
    data: tuple[str, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the report, and a line for each of the first figures."""
        plain = [name for name, value in self.before.items() if isinstance(value, float) and value >= 0][:MOST_FIGURES]
        lines = [
            f"{name:<6} {self.before[name]:.4f} -> {self.after[name]:.4f}  "
            f"({100 * (self.after[name] - self.before[name]):+.2f} points)"
            for name in plain
        ]
        return "\n".join([str(self.report), f"before and after, on {' '.join(self.data)}:", *lines])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self.report.to_json() | {"before": dict(self.before), "after": dict(self.after)}


def export(
    start: str | Path,
    *,
    to: str,
    out: str | Path | None = None,
    weights: Which = "last",
    step: Step | None = None,
    data: str | Sequence[str] = (),
) -> Exported:
    """Write a detector in another format, load it back and prove that it is the same.

    Args:
        start: A run folder or a weights file.
        to: An exporter's name; or `hub:USER/NAME`, which sends our own weights file and its model card to that
            repository of the Hugging Face hub. A repository that does not exist is made, and is private.
        out: File to create; none for `hub:`.
        weights: Which weights of a run folder: `last` or `best`.
        step: Take a checkpoint of the run, which need not have finished.
        data: Labelled images, named as for `evaluate`, on which model and file are both measured.

    Raises:
        ConfigError: There is no such exporter, or a file is named where none is written, or the reverse, or it exists.
        DataError: The labelled images can't be used; nothing is written.
        CheckpointError: The format can't hold this detector, or what came back differs.
        SetupError: The repository can't be reached, or may not be written.
    """
    if is_on_hub(to):
        if out is not None:
            raise ConfigError("--out names a file, and hub: writes none that stays here; leave it out")
        if data:
            raise ConfigError("--data measures a file that stays here; leave it out, or export to a file first")
        return _publish(start, to, weights, step)
    if out is None:
        raise ConfigError("--out FILE says where to; only --to hub:USER/NAME does without")
    if is_on_hub(out):
        raise ConfigError(f"--out {out}: is no file; to send a model, write --to {hub_name(out)} and no --out")
    find_or_import("ssldet.exporters", to)
    require_absent(Path(out))
    opened = open_trained(start, weights, step)
    # The exporter itself refuses a detector that it can't take, which need not be measured first.
    if not data or formats_of(opened.objective.detector, _config(opened)).reasons.get(to):
        return _write(opened, to, Path(out))
    specs = (data,) if isinstance(data, str) else tuple(data)
    before = evaluate(start, specs, weights=weights, step=step)
    report = _write(opened, to, Path(out))
    return Measured(report, specs, before, evaluate(out, specs))


def _write(opened: Opened, to: str, out: Path) -> Exported:
    exporter = find_or_import("ssldet.exporters", to)
    try:
        report: Exported = exporter(opened.objective, opened.info, out)
    except CheckpointError as error:
        formats = formats_of(opened.objective.detector, _config(opened))
        if not formats.reasons.get(to):
            raise
        raise CheckpointError(f"{error}; this detector {formats}") from error
    if opened.task.in_parts:
        log.warning("%s: answers one tile at a time: cut images before it, and merge what it finds", out)
    return report


def _config(opened: Opened) -> DetectorConfig:
    config: DetectorConfig = from_document(DetectorConfig, opened.info["detector"])  # type: ignore[type-abstract]
    return config


def _publish(start: str | Path, to: str, weights: Which, step: Step | None) -> Published:
    """Write and prove a weights file in a folder that does not stay, and send it with its card."""
    place = writable(to)
    if OWN not in names("ssldet.exporters"):
        raise ConfigError(f"no exporter {OWN!r}, whose files are what is sent; install ssldet again")
    with tempfile.TemporaryDirectory(prefix="ssldet-hub-") as folder:
        out = Path(folder, "model.safetensors")
        report = _write(open_trained(start, weights, step), OWN, out)
        card = out.with_name(f"{out.name}.md")
        from_here = f"```bash\npip install 'ssldet[hub]'\nssldet predict {place} IMAGES\n```\n"
        text = read_text(card).replace(CARD_HEADING, f"{CARD_HEADING}\n{from_here}", 1)
        card.unlink()
        out.with_name("README.md").write_text(text, encoding="utf-8")
        address = published(to, Path(folder), "Add a model of ssldet")
    return Published(place, address, report)
