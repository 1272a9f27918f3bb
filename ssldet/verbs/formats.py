"""detector -> the formats that it can be exported to, before it is trained; a format may hold the backbone alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.errors import ConfigError
from ssldet.registry import find, names

GROUP = "ssldet.exporters"
SWITCH = re.compile(r"\b([\w.]+=[\w/.-]*\w)")
"""The field that a reason names, whose other value would keep a format open."""


@dataclass(frozen=True)
class Formats:
    """Formats and the reasons against them.

    Attributes:
        reasons: Name of an exporter -> why it can't take the detector; empty where it can, as far as is known before
            it is tried.
    """

    reasons: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """Say on one line which exporters take the detector, and which fields would open more."""
        taken = [name for name, why in self.reasons.items() if not why]
        line = f"can be exported to {', '.join(taken)}"
        opening: dict[str, list[str]] = {}
        for name in self.reasons:
            if switches := self.switches(name):
                opening.setdefault(" ".join(switches), []).append(name)
        return line + "".join(f"; to {', '.join(more)} with --set {words}" for words, more in opening.items())

    def switches(self, name: str) -> list[str]:
        """Return the fields whose other value opens a format; empty where it is open, or no field alone opens it.

        Args:
            name: An exporter.
        """
        found: dict[str, str] = {}
        for reason in self.reasons[name]:
            field, match = reason.partition(":")[0], SWITCH.search(reason)
            # Several reasons may speak of one field, such as the backbone, and one other value answers them all.
            found[field] = found.get(field) or (_whole_path(match[1]) if match else "")
        return list(found.values()) if all(found.values()) else []


def formats_of(detector: Detector, config: DetectorConfig) -> Formats:
    """Ask every exporter whether it could take a detector; nothing is written.

    Args:
        detector: The detector, trained or not.
        config: Its configuration.
    """
    reasons: dict[str, tuple[str, ...]] = {}
    for name in names(GROUP):
        try:
            unfit = getattr(find(GROUP, name), "unfit", None)
        except ConfigError:
            continue  # its package is broken, which exporting says
        reasons[name] = tuple(unfit(detector, config)) if unfit else ()
    return Formats(reasons)


def formats_of_built(config: DetectorConfig) -> Formats:
    """Ask the same of a detector that is built for the question alone; what is drawn at random later does not change.

    Args:
        config: The detector's configuration.
    """
    with torch.random.fork_rng(devices=[]):
        return formats_of(config.build(), config)


def _whole_path(switch: str) -> str:
    return switch if switch.startswith("detector.") else f"detector.{switch}"
