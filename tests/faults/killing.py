"""verbs, chance -> killed again and again: in the end each has written, to the bit, what it writes undisturbed."""

import itertools
import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from ssldet.engine.steps import Checkpoints
from tests.faults.forking import start
from tests.faults.world import World, weights_of

TRAINING = ("pretrain", "finetune")
TURNS = (
    ("pretrain", 0), ("export", 0), ("finetune", 2), ("predict", 0), ("pretrain", 2), ("convert", 0), ("finetune", 0),
    ("evaluate", 0), ("evaluate", 2), ("preview", 0), ("report", 0),
)  # fmt: skip
"""Verbs and numbers of workers, in turn."""
LIVES = 6
"""Kills of one run before it may come to its end."""
ROUNDS = 20
"""Turns that a verb has at least, if it needs them: a short one often ends before its kill comes."""


@dataclass
class Kills:
    """What came of the kills.

    Attributes:
        counts: Kills by verb and number of workers.
        problems: What differed afterwards.
    """

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of processes killed at work."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        rows = [f"{name:20}{count:6} kills" for name, count in sorted(self.counts.items())]
        return "\n".join([*rows, f"{self.total} kills, {len(self.problems)} problems", *self.problems])


def written(verb: str, world: World, out: Path) -> dict[str, bytes]:
    """Return the files of a verb that do not depend on the clock, by name."""
    if verb == "report":
        return {"report.html": b"there" if (Path(world.finetuned) / "report.html").stat().st_size > 1000 else b""}
    if verb in TRAINING:
        return {"weights": weights_of(out)}
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    # What a killed process had staged stays beside the files; it has no name that anybody reads.
    return {path.name: path.read_bytes() for path in files if ".tmp-" not in path.name}


class Killer:
    """Runs verbs and kills them.

    Attributes:
        kills: What came of it.
    """

    def __init__(self, world: World, place: Path, seed: int) -> None:
        """Run every verb once undisturbed, to know what it writes and how long it takes.

        Args:
            world: What verbs work on.
            place: Folder to work in.
            seed: All chance there is.
        """
        self.world, self.place, self.kills = world, place, Kills()
        self._chance = random.Random(seed)
        self._quiet: dict[str, dict[str, bytes]] = {}
        self._seconds: dict[tuple[str, int], float] = {}
        for verb, workers in TURNS:
            out = self._out(verb, place / f"quiet-{verb}-{workers}")
            command = start(world.words(verb, out, workers), place / "said")
            assert command.ended(wait=True)
            self._seconds[verb, workers] = command.seconds()
            assert command.wait() == 0, command.err.read_text()
            found = written(verb, world, out)
            if self._quiet.setdefault(verb, found) != found:
                self.kills.problems.append(f"{verb}: the number of workers changes the result")

    def until(self, count: int) -> Kills:
        """Kill at least this many processes, each verb at least once, and say what came of it."""
        turns = itertools.count()
        for _ in range(max(ROUNDS, count)):
            for verb, workers in TURNS:
                name = f"{verb}, {workers} workers"
                if self.kills.total >= count and name in self.kills.counts:
                    continue
                folder = self.place / f"turn-{next(turns)}"
                self._life(verb, workers, self._out(verb, folder), name)
                shutil.rmtree(folder)
        return self.kills

    def _life(self, verb: str, workers: int, out: Path, name: str) -> None:
        """Kill a verb several times over one output, then let it end, and compare what it has written."""
        for attempt in range(LIVES + 1 if verb in TRAINING else 3):
            words = self.world.words(verb, out, workers)
            if verb in TRAINING and Checkpoints(out / "checkpoints").steps():
                words = self.world.resume(verb, out)
            command = start(words, self.place / "said")
            last = attempt >= (LIVES if verb in TRAINING else 2)
            share = self._chance.random() * (0.4 if verb in TRAINING else 1.0)
            code = command.wait() if last else command.killed_after(self._seconds[verb, workers] * share)
            if code == -signal.SIGKILL and not last:
                self.kills.counts[name] = self.kills.counts.get(name, 0) + 1
                self._look_at(verb, out, name)
            elif code == 0:
                break
            else:
                self.kills.problems.append(f"{name}: exit code {code}: {command.err.read_text()[-300:]}")
                return
            if verb in {"export", "convert"} and out.exists():
                break  # killed behind the rename: it is whole, and never overwritten
        if written(verb, self.world, out) != self._quiet[verb]:
            self.kills.problems.append(f"{name}: what it has written differs from the quiet run")

    def _look_at(self, verb: str, out: Path, name: str) -> None:
        """What stands under its own name right after a kill is whole."""
        if (
            verb in {"export", "convert", "evaluate"}
            and out.exists()
            and {out.name: out.read_bytes()} != {out.name: next(iter(self._quiet[verb].values()))}
        ):
            self.kills.problems.append(f"{name}: a torn file stands under its final name")

    def _out(self, verb: str, folder: Path) -> Path:
        folder.mkdir()
        names = {"evaluate": "a.json", "export": "a.safetensors", "convert": "b.json", "preview": "a.png"}
        return folder / names.get(verb, verb)
