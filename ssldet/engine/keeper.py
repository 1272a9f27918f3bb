"""Progress -> disk: checkpoints on the way, weights at the end; a full disk is bad luck, three in a row are not."""

import logging
import shutil
from typing import Any, NoReturn

from ssldet.engine.checkpoint import describe, save_weights
from ssldet.engine.folder import RunFolder
from ssldet.engine.progress import Progress
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.run import Run
from ssldet.engine.steps import Checkpoints, Restored, room_for
from ssldet.errors import DataError, SetupError, StoppedError
from ssldet.ranks import gather_objects, rank
from ssldet.recipe import to_document
from ssldet.source import Source

log = logging.getLogger(__name__)

PATIENCE = 3
"""Saves in a row that may fail before training stops."""


class Keeper:
    """Saves on rank 0, and lets all ranks know how it went.

    Attributes:
        folder: Where to.
        quarantine: The files that can't be used, counted on all ranks.
    """

    def __init__(self, run: Run, folder: RunFolder, source: Source) -> None:
        """Point at the run folder.

        Args:
            run: The configuration, which is saved along.
            folder: Where to write.
            source: What the run trains on.

        Raises:
            DataError: Too many files of it can't be used.
        """
        self._run, self.folder, self._source = run, folder, source
        self._document = to_document(run)
        self._checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
        self._failures = 0
        self.quarantine = Quarantine(source, run.data.max_bad_fraction, folder.path / "quarantine.jsonl")

    def begin(self, progress: Progress, restored: Restored | None) -> None:
        """Go on from a checkpoint, or make sure that there is one to go on from, and room for those to come.

        Args:
            progress: Changed to what was saved.
            restored: The checkpoint; `None` where there is none yet.

        Raises:
            SetupError: The disk is too small for checkpoints.
        """
        if restored is not None:
            progress.load_state_dict(restored.step, restored.state)
            return
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.checkpoints).free
        if problem := room_for(progress.state_bytes(), self._checkpoints.keep, self.folder.checkpoints, free):
            raise SetupError(problem)
        self.save(progress)

    def save(self, progress: Progress) -> None:
        """Save a checkpoint; every rank must call this at the same step.

        Raises:
            DivergedError: A weight is not finite; nothing has been saved then.
            SetupError: Saving failed for the third time in a row; on every rank alike.
        """
        progress.require_finite()
        problem = gather_objects(self._attempt(progress) if rank() == 0 else "")[0]
        if problem:
            self._bear(problem, progress.step)
            return
        self._failures = 0
        if rank() == 0:
            counters = {"steps": progress.step, "seconds": round(progress.seconds, 3)}
            self.folder.update(**counters, skipped_steps=progress.skipped, bad_files=self.quarantine.counts())

    def settle(self, progress: Progress) -> None:
        """Count bad files over all ranks; every rank must call this at the same step.

        Raises:
            DataError: There are too many. The run is saved first, because its owner may well want to go on.
        """
        try:
            self.quarantine.settle()
        except DataError:
            self.save(progress)
            raise

    def hand_over(self, progress: Progress, results: dict[str, Any]) -> None:
        """Write the weights of a finished run.

        Args:
            progress: At its last step.
            results: What the last evaluation measured.

        Raises:
            DivergedError: A weight is not finite.
        """
        progress.require_finite()
        if rank() == 0:
            info = describe(self._run, self._source, progress.step, self.folder.lineage())
            save_weights(self.folder.weights, progress.best, info)
            seconds = round(progress.seconds, 3)
            self.folder.update(status="finished", steps=progress.step, seconds=seconds, results=results)

    def stop(self, progress: Progress, by: str) -> NoReturn:
        """Save, and say how to go on.

        Args:
            progress: Between two steps.
            by: Who asked for it.

        Raises:
            StoppedError: Always.
        """
        self.save(progress)
        raise StoppedError(
            f"stopped at step {progress.step} of {progress.total_steps} by {by}; all is saved, go on with: "
            f"{self.folder.resume_command(self._run)}"
        )

    def _attempt(self, progress: Progress) -> str:
        """Save, and say what went wrong; empty where nothing did."""
        data = {"fingerprint": self._source.fingerprint, "images": len(self._source)}
        try:
            self._checkpoints.save(progress.step, {**progress.state_dict(), "run": self._document, "data": data})
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _bear(self, problem: str, step: int) -> None:
        """Go on without a checkpoint, unless that has happened too often."""
        self._failures += 1
        if self._failures >= PATIENCE:
            raise SetupError(
                f"no checkpoint could be saved {PATIENCE} times in a row (step {step}: {problem}); make room in "
                f"{self.folder.checkpoints}, then resume: everything up to the last good one is there"
            )
        log.error("step %d could NOT be saved (%s); training goes on, make room now", step, problem)
