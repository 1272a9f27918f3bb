"""formats x chance -> a verdict: every exception that is none of ssldet's own is a failure, and its input is kept."""

import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ssldet.errors import SsldetError
from tests.faults.mutation import Damage

SECONDS = 60
"""Longest time for one case, of some milliseconds on a machine of its own; a case that takes longer hangs."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file that is read.

    Attributes:
        name: Names it in a verdict.
        file: The file that is damaged.
        damage: How.
        read: Reads it as users do.
        cases: Number of cases in continuous integration; for hours of fuzzing, its weight.
    """

    name: str
    file: Path
    damage: Damage
    read: Callable[[], object]
    cases: int


@dataclass
class Verdict:
    """What came of the cases.

    Attributes:
        read: Cases that were read, by format.
        refused: Cases that were refused by an error of ssldet's own, by format.
        foreign: Descriptions of the others.
    """

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.read.total() + self.refused.total() + len(self.foreign)

    def __str__(self) -> str:
        rows = [f"{name:24}{self.read[name]:8} read {self.refused[name]:8} refused" for name in sorted(self.names())]
        return "\n".join([*rows, f"{self.cases} cases, {len(self.foreign)} foreign exceptions", *self.foreign])

    def names(self) -> set[str]:
        return self.read.keys() | self.refused.keys()


class HungError(BaseException):
    """A case took too long; no `except Exception` on its way stops this."""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HungError(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_case(form: Format, seed: int, number: int, verdict: Verdict, keep: Path) -> None:
    """Read one damaged file, and put the whole one back.

    Args:
        form: Its kind.
        seed: With the number, all chance there is.
        number: Of the case.
        verdict: Takes the outcome.
        keep: Folder for inputs that failed.
    """
    whole = form.file.read_bytes()
    damaged = form.damage(whole, random.Random(f"{seed} {form.name} {number}"))
    form.file.write_bytes(damaged)
    try:
        with _limited():
            form.read()
        verdict.read[form.name] += 1
    except SsldetError:
        verdict.refused[form.name] += 1
    except (Exception, HungError, SystemExit) as error:
        keep.mkdir(parents=True, exist_ok=True)
        kept = keep / f"{form.name}-{seed}-{number}{form.file.suffix}"
        kept.write_bytes(damaged)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        verdict.foreign.append(
            f"{form.name} seed {seed} case {number}: {type(error).__name__}: {str(error)[:150]!r} at {frame.filename}:"
            f"{frame.lineno}; input kept as {kept}"
        )
    finally:
        form.file.write_bytes(whole)


def fuzz(formats: Sequence[Format], seed: int, keep: Path, seconds: float | None = None) -> Verdict:
    """Try the cases of every format.

    Args:
        formats: What to read.
        seed: All chance there is.
        keep: Folder for inputs that failed.
        seconds: Go on with further cases until then; `None` tries the cases of continuous integration.
    """
    verdict, begun, turn = Verdict(), time.monotonic(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damage that it reads all the same
        while True:
            for form in formats:
                for number in range(turn * form.cases, (turn + 1) * form.cases):
                    if seconds is not None and time.monotonic() - begun > seconds:
                        return verdict
                    try_case(form, seed, number, verdict, keep)
            turn += 1
            if seconds is None:
                return verdict
