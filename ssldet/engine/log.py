"""step, numbers -> train.log, and a bar on a terminal, a line in a notebook or lines elsewhere; none stops a run."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from ssldet.escapes import EscapingFormatter
from ssldet.ranks import rank
from ssldet.regular import open_regular

log = logging.getLogger(__name__)

LINE_SECONDS = 5.0
"""Seconds between plain lines where there is no terminal."""

SHOWN: ContextVar[bool] = ContextVar("SHOWN", default=True)
"""Whether the progress of a run is shown on standard error."""


class Display:
    """Shows the progress of a run on standard error, until that is closed."""

    def __init__(self, title: str, total_steps: int) -> None:
        """Choose a bar on a terminal, one line that changes in a notebook, plain lines elsewhere.

        Args:
            title: Name of the run, such as that of its task.
            total_steps: Length of the run.
        """
        self._title, self._total = title, total_steps
        # None where the program has no standard error.
        self._stream: TextIO | None = sys.stderr
        self._last_shown = -LINE_SECONDS
        self._begun: tuple[float, int] | None = None
        self._bar: Progress | None = None
        self._shown = rank() == 0 and SHOWN.get()
        # A notebook is no terminal, but goes back to the beginning of a line where it is told to.
        self._rewrites = type(self._stream).__module__.startswith("ipykernel")
        self._written = 0
        if self._shown and self._stream is not None and self._stream.isatty():
            whole, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self._bar = Progress(
                TextColumn("{task.description}", table_column=whole),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[place]}", table_column=whole),
                # What a narrow terminal has no room for is cut here, and never the columns before.
                TextColumn("{task.fields[numbers]}", table_column=rest),
                console=Console(file=self._stream),
                transient=True,
                expand=True,
            )
            self._row = self._bar.add_task(title, total=total_steps, numbers="", place=f"step 0/{total_steps}")
            self._bar.start()

    def show(self, line: Mapping[str, Any]) -> None:
        """Show a line of the metrics file.

        Args:
            line: With `step`; of kind `train` or `eval`.
        """
        if not self._shown:
            return
        now, step = time.monotonic(), int(line["step"])
        if self._begun is None:
            self._begun = now, step
        done = step - self._begun[1]
        seconds = (now - self._begun[0]) / done * (self._total - step) if done else None
        numbers = summary(line)
        eta = "" if seconds is None or line["kind"] != "train" else f"  eta {timedelta(seconds=round(seconds))}"
        try:
            self._tell(str(line["kind"]), step, numbers, eta, now)
        except (OSError, ValueError):
            # The reader of a pipe has gone, or a terminal was closed.
            self._stream, self._bar = None, None

    def close(self) -> None:
        """Remove the bar from the terminal."""
        with suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.stop()
            elif self._written and self._stream is not None:
                self._stream.write("\n")
                self._stream.flush()
                self._written = 0

    def _tell(self, kind: str, step: int, numbers: str, eta: str, now: float) -> None:
        place = f"step {step}/{self._total}{eta}"
        if self._bar is not None:
            if kind == "train":
                self._bar.update(self._row, completed=step, numbers=numbers, place=place)
            else:
                self._bar.console.print(f"step {step}  {numbers}", highlight=False)
        elif self._rewrites:
            self._rewrite(f"{self._title}  {place}  {numbers}", last=kind != "train")
        elif self._stream is not None and (
            kind != "train" or now - self._last_shown >= LINE_SECONDS or step == self._total
        ):
            self._last_shown = now
            self._stream.write(f"{self._title}  step {step}/{self._total}  {numbers}{eta}\n")
            self._stream.flush()

    def _rewrite(self, text: str, *, last: bool) -> None:
        """Replace what the line of a notebook said, and leave it there for good if it is the last of its kind."""
        if self._stream is None:
            return
        self._stream.write(f"\r{text.ljust(self._written)}" + ("\n" if last else ""))
        self._stream.flush()
        self._written = 0 if last else len(text)


def summary(line: Mapping[str, Any]) -> str:
    """Return the numbers of a metrics line as text, without those that the data cannot give (-1, as in COCO's code)."""
    if line["kind"] != "train":
        given = {name: value for name, value in line.items() if isinstance(value, float) and value != -1}
        return "  ".join(f"{name} {value:.4g}" for name, value in given.items())
    parts = " ".join(
        f"{name.split('/', 1)[1]} {value:.3g}"
        for name, value in line.items()
        if name.startswith(("loss/", "metric/")) and isinstance(value, float)
    )
    return (
        f"loss {line['loss']:.4g} ({parts})  lr {line['lr']:.2g}  {line['images_per_second']:.3g} images/s  "
        f"waiting for data {line['data_wait']:.0%}"
    )


class _LogFile(logging.FileHandler):
    """A log file that says once, and not with a traceback for each line, that it can't be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._path, self._told = path, False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name that logging calls
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            log.error("%s can't be written (%s); training goes on without it", self._path, error.strerror)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Copy the log of ssldet into a file, and show warnings on standard error where no handler does.

    Args:
        path: The file; appended to.
    """
    logger = logging.getLogger("ssldet")
    handlers: list[logging.Handler] = []
    if rank() == 0:
        open_regular(path, "ab").close()  # a handler would wait for the reader of a pipe
        handlers.append(_LogFile(path))
        handlers[0].setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(message)s"))
    if not logger.hasHandlers():
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.WARNING)
        shown.setFormatter(EscapingFormatter("%(levelname)s %(message)s"))
        handlers.append(shown)
    level = logger.level
    for handler in handlers:
        logger.addHandler(handler)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class Meter:
    """Measures throughput and waiting between two lines of the metrics file; time between two steps is left out."""

    def __init__(self, images: int = 0) -> None:
        """Start the clock.

        Args:
            images: Images that the run has processed already, before it was resumed.
        """
        self._since, self._passed = time.monotonic(), 0.0
        self._images, self._waited = images, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block, such as that of an evaluation, out of both rates."""
        self._passed += time.monotonic() - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()

    def rates(self, images: int, waited: float) -> dict[str, float]:
        """Return the rates since the last call, and reset them; to be called while paused.

        Args:
            images: Images of the whole run so far.
            waited: Seconds that the whole run has spent waiting for them.
        """
        passed = max(self._passed, 1e-9)
        data_wait = min(1.0, (waited - self._waited) / passed)
        rates = {"images_per_second": (images - self._images) / passed, "data_wait": data_wait}
        self._passed, self._images, self._waited = 0.0, images, waited
        return rates
