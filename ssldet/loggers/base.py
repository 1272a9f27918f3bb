"""lines of the metrics file -> every logger that was asked for; whatever one of them does, the run goes on."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ssldet import registry
from ssldet.errors import SetupError

log = logging.getLogger(__name__)

GROUP = "ssldet.loggers"

OWN_PARTS = ("kind", "step")
"""What of a line is not a number of its own."""


class Logger(Protocol):
    """Takes the numbers of a run; an exception of either method ends the logger and not the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in some numbers.

        Args:
            step: Optimiser steps done; never decreases.
            values: Name -> finite number; names are paths such as `train/loss/class` or `eval/AP`.
        """
        ...

    def close(self) -> None:
        """Write what is left and let go; called once, also when the run failed."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of the run.

    Attributes:
        folder: The run folder.
        id: What tells this run from others, the same after it is resumed.
        step: Steps done when it starts or is resumed.
        settings: Dotted field -> plain value of the whole configuration.
    """

    folder: Path
    id: str
    step: int
    settings: Mapping[str, Any]


Opener = Callable[[LoggedRun], Logger]
"""What is registered under a name; its attribute `needs`, if it has one, names the packages that it imports."""


def require_loggers(names: Sequence[str]) -> None:
    """Let a run start only if its loggers are known and installed.

    Args:
        names: Names that are registered under `ssldet.loggers`.

    Raises:
        ConfigError: There is no such logger.
        SetupError: A package that one needs is not installed.
    """
    for name in names:
        needs = getattr(registry.find(GROUP, name), "needs", ())
        if missing := [package for package in needs if find_spec(package) is None]:
            raise SetupError(
                f"logger {name} needs {' and '.join(missing)}; pip install 'ssldet[{name}]', or leave --logger out: "
                "metrics.jsonl has every number"
            )


class Loggers:
    """All loggers of a run; one that fails is said once and left out from then on."""

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        """Open each.

        Args:
            names: Names that are registered under `ssldet.loggers`.
            run: What they are told of the run.
        """
        self._open: dict[str, Logger] = {}
        for name in dict.fromkeys(names):
            self._guard(name, lambda name=name: self._open.update({name: registry.find(GROUP, name)(run)}))  # type: ignore[misc]

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand a line of the metrics file on.

        Args:
            line: With `kind` and `step`.
        """
        own = {name: value for name, value in line.items() if name not in OWN_PARTS}
        values = dict(_numbers(own, str(line["kind"])))
        for name, logger in list(self._open.items()):
            self._guard(name, lambda logger=logger: logger.log(int(line["step"]), values))  # type: ignore[misc]

    def close(self) -> None:
        """Close every logger that still works."""
        for name, logger in list(self._open.items()):
            self._guard(name, logger.close)
        self._open = {}

    def _guard(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # a package of somebody else may fail in any way
            told = str(error).strip().partition("\n")[0]
            log.warning(
                "logger %s failed and is left out (%s: %s); metrics.jsonl has every number",
                name,
                type(error).__name__,
                told,
            )
            failed = self._open.pop(name, None)
            if failed is not None:
                with suppress(Exception, SystemExit):
                    failed.close()


def _numbers(entries: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of a line, nested ones by their path."""
    for name, value in entries.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _numbers(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield path, float(value)
