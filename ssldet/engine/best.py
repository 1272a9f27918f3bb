"""evaluations -> the weights that measured best so far, on disk, and whether to wait any longer for better ones.

Each file is named after its step. A resumed run finds the record of its checkpoint, and the file that belongs to it, so
that it keeps and stops exactly as if it had not been interrupted.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssldet.engine.checkpoint import save_weights
from ssldet.engine.description import describe, stated
from ssldet.engine.evaluate import require_measure
from ssldet.engine.folder import RunFolder
from ssldet.engine.progress import Progress
from ssldet.engine.run import HEADLINE, Run
from ssldet.engine.steps import Checkpoints
from ssldet.escapes import counted
from ssldet.ranks import gather_objects, rank
from ssldet.source import Source
from ssldet.task import headline_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BestSoFar:
    """What the evaluations of a run came to.

    Attributes:
        measure: Name of the measure; larger is better.
        val: Where it was measured, `data.measured_on`.
        seen: Step of the last evaluation that counts here.
        step: Step of the best one; `None` while no evaluation gave a number.
        value: What it measured.
        waited: Evaluations since then.
    """

    measure: str
    val: list[str]
    seen: int = 0
    step: int | None = None
    value: float = -math.inf
    waited: int = 0


class BestWeights:
    """Keeps the weights that measured best; every rank comes to the same record, rank 0 writes."""

    def __init__(self, run: Run, folder: RunFolder, source: Source) -> None:
        """Point at the run folder.

        Args:
            run: Says which measure counts, and how long to wait for a better one.
            folder: Where to write.
            source: Training images, which the files describe.
        """
        self._run, self._folder, self._source = run, folder, source
        self._record: BestSoFar | None = None

    def state(self) -> dict[str, Any] | None:
        """Return the record as plain values for a checkpoint."""
        return None if self._record is None else asdict(self._record)

    def restore(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Take the record of a checkpoint up, and delete the weights of steps that are still to come.

        Args:
            step: Steps done.
            state: What `state` returned then; `None` where nothing had been measured.
        """
        self._record = None if state is None else BestSoFar(**state)
        if rank() == 0:
            for later in [found for found in self._folder.best_steps() if found > step]:
                self._folder.best_weights(later).unlink()
            self._tell()

    def take(self, progress: Progress, results: Mapping[str, Any]) -> None:
        """Compare an evaluation with the best so far, and keep the weights if it is better.

        Args:
            progress: Training state at the evaluation; ends early where the run has waited long enough.
            results: What it measured, the same on every rank; taking the same step again changes nothing.

        Raises:
            ConfigError: There is no such measure.
        """
        wanted = self._run.checkpoint.best_of
        if wanted is None or not results:
            return
        record = self._record_of(self._measure(wanted, results))
        if progress.step > record.seen:
            value = results.get(record.measure)
            number = float(value) if isinstance(value, int | float) else math.nan
            record = replace(record, seen=progress.step, waited=record.waited + 1)
            if number > record.value:
                record = replace(record, waited=0)
                if self._written(progress, record.measure, number):
                    record = replace(record, step=progress.step, value=number)
            self._record = record
            if rank() == 0:
                self._tell()
                self._tidy()
        patience = self._run.budget.patience
        if patience is not None and record.waited >= patience:
            waited = counted(record.waited, "evaluation")
            progress.enough = (
                f"no better {record.measure} in {waited}; the best was {record.value:.4g} at step {record.step}"
            )

    def _record_of(self, measure: str) -> BestSoFar:
        """Return the record so far, or a new one where that is of another measure or of other images."""
        before, val = self._record, self._run.data.measured_on
        if before is not None and (before.measure, before.val) == (measure, val):
            return before
        if before is not None:
            log.warning(
                "the best %s so far, %.4g at step %s, was measured otherwise and counts no more",
                before.measure,
                before.value,
                before.step,
            )
        return BestSoFar(measure=measure, val=val)

    def _measure(self, wanted: str, results: Mapping[str, Any]) -> str:
        if wanted == HEADLINE:
            return headline_of(type(self._run.task), results)
        require_measure(wanted, results)
        return wanted

    def _written(self, progress: Progress, measure: str, value: float) -> bool:
        """Write the weights, and tell all ranks whether that was possible."""
        problem = gather_objects(self._attempt(progress, measure, value) if rank() == 0 else "")[0]
        if problem:
            log.error("the best weights, of step %d, could NOT be kept (%s); make room now", progress.step, problem)
        return not problem

    def _attempt(self, progress: Progress, measure: str, value: float) -> str:
        info = describe(self._run, stated(self._source), progress.step, self._folder.lineage())
        try:
            path = self._folder.best_weights(progress.step)
            save_weights(path, progress.model, {**info, "measured": {measure: value}})
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _tell(self) -> None:
        """Write the best so far into `run.json`."""
        record = self._record
        if record is None or record.step is None:
            self._folder.note(best=None)
            return
        name = self._folder.best_weights(record.step).relative_to(self._folder.path).as_posix()
        self._folder.note(best={"measure": record.measure, "value": record.value, "step": record.step, "file": name})

    def _tidy(self) -> None:
        """Delete what is best no more, unless going on from a checkpoint would need it.

        Every file was the best when it was written, so a checkpoint's best is the newest one that is not younger.
        """
        found = self._folder.best_steps()
        needed = {max(found, default=0)}
        for checkpoint in Checkpoints(self._folder.checkpoints).steps():
            needed |= {max((step for step in found if step < checkpoint), default=0), checkpoint}
        for step in set(found) - needed:
            self._folder.best_weights(step).unlink()
