"""Progress -> disk: checkpoints on the way, written while training goes on, and weights at the end."""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

from ssldet.engine.best import BestWeights
from ssldet.engine.checkpoint import save_weights
from ssldet.engine.description import describe, stated
from ssldet.engine.folder import RunFolder
from ssldet.engine.progress import Progress
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.run import Run
from ssldet.engine.saving import BackgroundWork, Snapshot
from ssldet.engine.steps import Checkpoints, Restored, room_for
from ssldet.engine.writing import Patience
from ssldet.errors import ConfigError, DataError, SetupError, StoppedError
from ssldet.ranks import gather_objects, rank
from ssldet.recipe import to_document
from ssldet.source import Source

log = logging.getLogger(__name__)


class Keeper:
    """Saves on rank 0, and lets all ranks know how it went.

    At most one checkpoint is on its way. How it went is known when it has been waited for: before the next one, before
    an evaluation and at the end, or as soon as a step finds that it is written.

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
        self._document, self._id = to_document(run), folder.id
        self._checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
        self._best = BestWeights(run, folder, source)
        self._patience = Patience("a checkpoint", folder.checkpoints)
        self._writing = BackgroundWork()
        self._on_its_way: tuple[int, dict[str, Any]] | None = None
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
            self._best.restore(restored.step, restored.state.get("best"))
            return
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.checkpoints).free
        if problem := room_for(progress.state_bytes(), self._checkpoints.keep, self.folder.checkpoints, free):
            raise SetupError(problem)
        self.save_now(progress)

    def save(self, progress: Progress) -> None:
        """Begin to save a checkpoint of this step; every rank must call this at the same step.

        Args:
            progress: Between two steps; what follows does not change the checkpoint.

        Raises:
            DivergedError: A weight is not finite; nothing has been saved then.
            SetupError: The one before was the third in a row to fail; on every rank alike.
        """
        self.wait()
        progress.require_finite()
        facts = {"steps": progress.step, "seconds": round(progress.seconds, 3), "skipped_steps": progress.skipped}
        self._on_its_way = progress.step, {**facts, "bad_files": self.quarantine.counts()}
        if rank() == 0:
            whole = {**progress.state_dict(), "run": self._document, "run_id": self._id, "data": stated(self._source)}
            snapshot = Snapshot(whole | {"best": self._best.state()})
            self._writing.start(partial(self._write, progress.step, snapshot), "checkpoint")

    @property
    def written(self) -> bool:
        """Whether this rank has written a checkpoint, well or not, that was not waited for yet."""
        return self._writing.over

    def wait(self) -> None:
        """Wait for the checkpoint on its way, if there is one; every rank must call this at the same step.

        Raises:
            SetupError: Saving failed for the third time in a row; on every rank alike.
        """
        if self._on_its_way is None:
            return
        (step, facts), self._on_its_way = self._on_its_way, None
        if problem := gather_objects(self._outcome())[0]:
            self._patience.failed(problem, f"step {step}")
            return
        self._patience.succeeded()
        if rank() == 0:
            self.folder.note(**facts)

    def save_now(self, progress: Progress) -> None:
        """Save a checkpoint, and wait until it is written; otherwise as `save`."""
        self.save(progress)
        self.wait()

    def close(self) -> None:
        """Let the checkpoint on its way be written, where an error has ended the run."""
        if self._on_its_way is not None and (problem := self._outcome()):
            log.error("step %d: a checkpoint could NOT be saved (%s)", self._on_its_way[0], problem)

    def settle(self, progress: Progress) -> None:
        """Count bad files over all ranks; every rank must call this at the same step.

        Raises:
            DataError: There are too many. The run is saved first, because its owner may well want to go on.
        """
        try:
            self.quarantine.settle()
        except DataError:
            self.save_now(progress)
            raise

    def compare(self, progress: Progress, results: Mapping[str, Any]) -> None:
        """Keep the weights if they measured better than before; every rank must call this at the same step.

        Args:
            progress: Training state at the evaluation; ends early where the run has waited long enough.
            results: What it measured; nothing where it failed.

        Raises:
            ConfigError: There is no such measure. The run is saved first, because resuming may name another.
        """
        # The best weights that it belongs to are kept only as long as its file is there.
        self.wait()
        try:
            self._best.take(progress, results)
        except ConfigError as error:
            self.save_now(progress)
            raise ConfigError(f"{error}; go on with: {self.folder.resume_command(self._run)} --set …") from error

    def hand_over(self, progress: Progress, results: dict[str, Any]) -> None:
        """Write the weights of a finished run, and a checkpoint where it ended early.

        Args:
            progress: At its end.
            results: What the last evaluation measured.

        Raises:
            DivergedError: A weight is not finite.
            SetupError: They can't be written.
        """
        self.wait()
        progress.require_finite()
        if progress.enough:
            log.info("ended at step %d of %d: %s", progress.step, progress.total_steps, progress.enough)
            self.save_now(progress)
        if rank() == 0:
            info = describe(self._run, stated(self._source), progress.step, self.folder.lineage())
            seconds = round(progress.seconds, 3)
            ended = {"status": "finished", "ended_early": progress.enough or None}
            try:
                save_weights(self.folder.weights, progress.model, info)
                self.folder.update(**ended, steps=progress.step, seconds=seconds, results=results)
            except OSError as error:
                go_on = self.folder.resume_command(self._run)
                raise SetupError(
                    f"{self.folder.path}: the run can't be finished ({error.strerror or error}); make room there, then "
                    f"write its weights with: {go_on}"
                ) from error

    def stop(self, progress: Progress, by: str) -> NoReturn:
        """Save, and say how to go on.

        Args:
            progress: Between two steps.
            by: Who asked for it.

        Raises:
            StoppedError: Always.
        """
        self.save_now(progress)
        raise StoppedError(
            f"stopped at step {progress.step} of {progress.total_steps} by {by}; all is saved, go on with: "
            f"{self.folder.resume_command(self._run)}"
        )

    def _write(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint; the thread."""
        self._checkpoints.save(step, snapshot.state())

    def _outcome(self) -> str:
        """Wait for what this rank writes, and say what went wrong; empty where nothing did."""
        try:
            self._writing.wait()
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""
