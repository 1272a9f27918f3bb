"""python -m tests.soak -> hours of training, kills and damaged files, with limits; exit code 1 when one is broken.

Of no test run; `make soak` runs all three, each for its default time.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch

from tests.faults.forking import tidy
from tests.faults.formats import formats
from tests.faults.fuzzing import fuzz
from tests.faults.killing import Killer
from tests.faults.world import make
from tests.soak.training import train_for


def main() -> int:
    """Run what is asked, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("what", choices=["train", "kills", "fuzz", "all"], nargs="?", default="all")
    parser.add_argument("--hours", type=float, default=2.0, help="time of training, and of damaged files (default: 2)")
    parser.add_argument("--kills", type=int, default=240, help="number of kills (default: 240)")
    parser.add_argument("--seed", type=int, default=0, help="all chance there is (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("soak"), help="folder of inputs that failed (default: soak)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory(prefix="ssldet-soak-") as name, tidy():
        folder = Path(name)
        if given.what in {"train", "all"}:
            use = train_for(given.hours * 3600, folder / "training")
            good &= not use.problems
            say(str(use))
        if given.what in {"kills", "all"}:
            (folder / "kills").mkdir()
            kills = Killer(make(folder / "world"), folder / "kills", given.seed).until(given.kills)
            good &= not kills.problems
            say(str(kills))
        if given.what in {"fuzz", "all"}:
            logging.disable(logging.CRITICAL)
            verdict = fuzz(formats(folder / "formats"), given.seed, given.keep, seconds=given.hours * 3600)
            good &= not verdict.foreign
            say(str(verdict))
    say("passed" if good else "FAILED")
    return 0 if good else 1


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
