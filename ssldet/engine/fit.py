"""Run, folder -> trained weights: check everything, choose devices, and only then write and train."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from ssldet import peers, ranks
from ssldet.engine.assemble import assemble
from ssldet.engine.checkpoint import load_exactly
from ssldet.engine.devices import Devices, account, be_deterministic, devices_for, placement_of, settled
from ssldet.engine.evaluate import require_measurable
from ssldet.engine.features import keep_features, telling
from ssldet.engine.folder import RunFolder
from ssldet.engine.keeper import Keeper
from ssldet.engine.log import logged_to
from ssldet.engine.loop import train
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.reporter import DrawPreview, Reporter
from ssldet.engine.resume import fault_of, require_same_run
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, open_sources
from ssldet.engine.steps import Checkpoints, Restored
from ssldet.engine.stop import StopFlag
from ssldet.errors import CheckpointError, ConfigError, DivergedError, SsldetError, StoppedError
from ssldet.escapes import counted
from ssldet.loggers.base import require_loggers
from ssldet.recipe import check, fingerprint
from ssldet.source import Source
from ssldet.task import Objective, learning_sections

log = logging.getLogger(__name__)
outcome = logging.getLogger(f"{__name__}.outcome")
"""Logs to the file alone: the caller gets the same words as an error."""

_VERBOSE = ("lightning_fabric.utilities.distributed", "lightning_fabric.utilities.rank_zero")
"""Loggers of Fabric, which report how ranks connect and advertise other products."""


@peers.together()
def fit(
    run: Run,
    folder: RunFolder,
    *,
    objective: Objective | None = None,
    sources: Sources | None = None,
    resume: bool = False,
    preview: DrawPreview | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train, from the first step or from the newest valid checkpoint.

    Args:
        run: The configuration.
        folder: Where to write; created here if it was not yet, after everything has been checked.
        objective: What learns, such as a detector that was handed over; `None` builds it from the run.
        sources: The images of the run, where they are open already; `None` opens them.
        resume: Go on in the folder; what the configuration may change then is small, see `ssldet.engine.resume`.
        preview: Draws what an objective finds in a batch, at the start, at the end and on the way.
        documents: JSON files to lay beside a new run's configuration, by name.

    Returns:
        What the last evaluation measured; empty without validation images.

    Raises:
        ConfigError: The configuration can't run, or can't be resumed with.
        DataError: The images can't be used, or are others than before.
        StoppedError: A signal asked to stop; everything is saved.
        DistributedError: Another rank failed or is lost; says which and why.
        DivergedError: Losses or gradients were not finite too often in a row.
        SetupError: A device or disk space is missing, or the folder is in use.
    """
    check(run)
    run, placement = settled(run), placement_of(run)
    if run.deterministic:
        be_deterministic()
    sources = sources or open_sources(run)
    require_usable(run, sources)
    try:
        restored = _restored(run, folder, sources.train) if resume else None
        if restored is not None:
            objective = run.task.objective(run.detector.build())
            load_exactly(objective, restored.state["objective"], f"checkpoint of step {restored.step}")
        elif objective is None:
            documents = dict(documents or {})
            objective = assemble(run, sources.train, documents)
        objective.detector.train_only(learning_sections(run.task, objective.detector))
        features = keep_features(run, objective, sources, placement.world)
        if not resume and not folder.held:
            folder = RunFolder.create(folder.path, run)
        for name, document in (documents or {}).items():
            folder.write_json(name, document)
        with logged_to(folder.path / "train.log"), StopFlag() as stop, _outcome(folder), _quiet(), telling(features):
            if restored is not None:
                _take_up(run, folder, restored)
            total = run.total_steps(len(sources.train))
            images, steps = counted(len(sources.train), "image"), counted(total, "step")
            log.info("%s, %s of %d", images, steps, run.data.batch_size)
            log.info("%s", account(run, placement))
            peers.join(lambda: stop.raised, partial(_failed, folder))
            devices = devices_for(placement, objective)
            _join(devices, run, sources.train, 0 if restored is None else restored.step)
            keeper = Keeper(run, folder, sources.train)
            reporter = Reporter(run, folder, sources, preview, keeper.compare)
            with closing(reporter), closing(keeper):
                train(devices, run, objective, sources.train, reporter, keeper, stop, restored)
                reporter.require_measured()
            return reporter.results
    finally:
        folder.release()


def require_usable(run: Run, sources: Sources) -> None:
    """Let a run start only if its images can be read, those to measure on can be measured on, and its loggers exist.

    Args:
        run: The configuration.
        sources: Its images.

    Raises:
        DataError: Too many files are bad, or there is nothing to measure.
        ConfigError: There is no such measure as `checkpoint.best_of`, or no such logger.
        SetupError: A logger is not installed.
    """
    require_loggers(run.loggers)
    Quarantine(sources.train, run.data.max_bad_fraction)
    if sources.val is not None:
        require_measurable(run, sources.val)


def _join(devices: Devices, run: Run, source: Source, step: int) -> None:
    """Start the other ranks or find them, and make sure that all are about to do the same."""
    devices.launch()
    ranks.require_agreement({"configuration": fingerprint(run), "data set": source.fingerprint, "step": str(step)})


def _restored(run: Run, folder: RunFolder, source: Source) -> Restored:
    folder.lock()
    checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
    try:
        restored = checkpoints.newest(partial(fault_of, recorded=settled(folder.run()), run_id=folder.id))
    except SsldetError:
        # Nothing fits run.toml, or that can't be read: what differs is then said field by field.
        restored = checkpoints.newest(partial(fault_of, recorded=None, run_id=folder.id))
    if restored is None:
        raise CheckpointError(f"{folder.path}: has no checkpoint to go on from; start the run again")
    require_same_run(restored.state, run, source)
    if restored.step > (total := run.total_steps(len(source))):
        raise ConfigError(f"budget: the run has taken {restored.step} steps already, more than the {total} asked for")
    return restored


def _take_up(run: Run, folder: RunFolder, restored: Restored) -> None:
    """Tidy the folder for going on, now that nothing can be refused any more."""
    if ranks.rank() != 0:
        return
    checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
    for path in restored.damaged:
        checkpoints.set_aside(path)
    folder.sweep()
    folder.cut_metrics(restored.step)
    folder.write_run(run)
    log.info("going on from step %d", restored.step)


@contextmanager
def _outcome(folder: RunFolder) -> Iterator[None]:
    """Write down how a run ended, unless it came to its end."""
    try:
        yield
    except BaseException as error:
        cause = peers.explain(error)
        endings: dict[type[BaseException], str] = {StoppedError: "stopped", DivergedError: "diverged"}
        status = endings.get(type(cause), "failed")
        outcome.error("%s: %s", status, cause)
        if ranks.rank() == 0:
            folder.conclude(status=status, reason=str(cause))
        if cause is error:
            raise
        raise cause from error


def _failed(folder: RunFolder, reason: str) -> None:
    """Write down why a run failed whose main thread can't."""
    if ranks.rank() == 0:
        folder.conclude(status="failed", reason=reason)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show problems only of what `_VERBOSE` logs."""
    verbose = [logging.getLogger(name) for name in _VERBOSE]

    def is_problem(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    for logger in verbose:
        logger.addFilter(is_problem)
    try:
        yield
    finally:
        for logger in verbose:
            logger.removeFilter(is_problem)
