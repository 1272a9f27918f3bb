"""Run, folder -> trained weights: the one engine, and the only file that knows Lightning.

Lightning places, launches and synchronises; it holds no state of ours. Every process sees one "epoch" that consists of
the batches that are still to come, so a resume needs none of Lightning's counters, and none are saved.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ssldet import ranks
from ssldet.data.loader import training_batches
from ssldet.engine.assemble import assemble
from ssldet.engine.checkpoint import load_exactly
from ssldet.engine.folder import RunFolder
from ssldet.engine.log import logged_to
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.resume import require_same_run
from ssldet.engine.run import Run
from ssldet.engine.session import Preview, Session, Setting
from ssldet.engine.sources import evaluation_source, training_source
from ssldet.engine.steps import Checkpoints, Restored
from ssldet.engine.stop import StopFlag
from ssldet.errors import CheckpointError, ConfigError, DivergedError, SetupError, StoppedError
from ssldet.recipe import check, fingerprint
from ssldet.task import Objective, PretextTask, learning_sections
from ssldet.types import Batch, Source

log = logging.getLogger(__name__)

_TALKERS = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed")


def fit(
    run: Run,
    folder: RunFolder,
    *,
    objective: Objective | None = None,
    resume: bool = False,
    preview: Preview | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train, from the first step or from the newest valid checkpoint.

    Args:
        run: The configuration.
        folder: Where to write; created here if it was not yet, after everything has been checked.
        objective: What learns, such as a detector that was handed over; none builds it from the run.
        resume: Go on in the folder; what the configuration may change then is small, see `ssldet.engine.resume`.
        preview: Draws what an objective finds in a batch, at the start, at the end and on the way.
        documents: JSON files to lay beside a new run's configuration, by name.

    Returns:
        What the last evaluation measured; empty without validation images.

    Raises:
        ConfigError: The configuration can't run, or can't be resumed with.
        DataError: The images can't be used, or are others than before.
        StoppedError: A signal asked to stop; everything is saved.
        DivergedError: Losses or gradients were not finite too often in a row.
        SetupError: A device or disk space is missing, or the folder is in use.
    """
    check(run)
    trainer = _trainer(run)
    source = training_source(run)
    val = evaluation_source(run, source) if run.data.val else None
    Quarantine(source, run.data.max_bad_fraction)
    total = run.budget.total_steps(len(source), run.data.batch_size)
    try:
        restored = _restored(run, folder, source, total) if resume else None
        if restored is not None:
            objective = run.task.objective(run.detector.build())
            load_exactly(objective, restored.state["objective"], f"checkpoint of step {restored.step}")
        elif objective is None:
            documents = dict(documents or {})
            objective = assemble(run, source, documents)
        objective.detector.train_only(learning_sections(run.task, objective.detector))
        if not resume and folder.status().get("status") != "created":
            folder = RunFolder.create(folder.path, run)
        for name, document in (documents or {}).items():
            folder.write_json(name, document)
        with logged_to(folder.path / "train.log"), StopFlag() as stop, _outcome(folder):
            if restored is not None:
                _take_up(run, folder, restored)
            setting = Setting(
                run=run,
                folder=folder,
                objective=objective,
                source=source,
                val=val,
                total_steps=total,
                stop=stop,
                preview=preview,
            )
            log.info("%d images, %d steps of %d", len(source), total, run.data.batch_size)
            return _train(trainer, Session(setting, restored))
    finally:
        folder.release()


class _Conductor(lightning.LightningModule):
    """Passes Lightning's calls on to a session."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.objective = session.at.objective
        self.session = session

    def train_dataloader(self) -> DataLoader[Batch]:
        at, run = self.session.at, self.session.at.run
        return training_batches(
            at.source,
            run.task.views(),
            seed=run.seed,
            batch_size=run.data.batch_size,
            total_steps=at.total_steps,
            start_step=self.session.step,
            rank=ranks.rank(),
            world=ranks.world(),
            accumulate=run.optim.accumulate,
            workers=run.data.workers,
            strip_labels=isinstance(run.task, PretextTask),
        )

    def configure_optimizers(self) -> Optimizer:
        return self.session.optimizer()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_fit_start(self) -> None:
        at = self.session.at
        ranks.require_agreement(
            {"configuration": fingerprint(at.run), "data set": at.source.fingerprint, "step": str(self.session.step)}
        )
        self.session.start(self.device)
        if self.session.stopped or self.session.step >= at.total_steps:
            self.trainer.limit_train_batches = 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.session.begin_part(batch_idx % self.session.at.run.optim.accumulate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.session.loss(batch)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        optimizer_closure()
        self.session.update()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.session.end_part(batch_idx % self.session.at.run.optim.accumulate):
            self.trainer.should_stop = True


def _train(trainer: lightning.Trainer, session: Session) -> dict[str, Any]:
    try:
        with _quiet():
            trainer.fit(_Conductor(session))
    finally:
        session.close()
    if session.stopped:
        at = session.at
        raise StoppedError(
            f"stopped at step {session.step} of {at.total_steps} by {at.stop.raised or 'another rank'}; all is saved, "
            f"go on with: {at.folder.resume_command(at.run)}"
        )
    return session.results


def _trainer(run: Run) -> lightning.Trainer:
    """Choose devices; everything that Lightning would write, print, draw or decide by itself is off."""
    if run.device == "cuda" and not torch.cuda.is_available():
        raise SetupError("device: cuda was asked for, but torch sees no such device; use --set device=auto")
    accelerator = "gpu" if run.device != "cpu" and torch.cuda.is_available() else "cpu"
    present = torch.cuda.device_count() if accelerator == "gpu" else 1
    devices, machines = ranks.launched() or (run.devices or present, 1)
    if accelerator == "gpu" and devices > present:
        raise SetupError(f"devices: {devices} asked for, {present} present; use --set devices={present}")
    shares = devices * machines * run.optim.accumulate
    if run.data.batch_size % shares:
        raise ConfigError(
            f"data.batch_size: {run.data.batch_size} images can't be split equally among {devices * machines} devices "
            f"and {run.optim.accumulate} parts; choose a multiple of {shares}"
        )
    strategy: Strategy | str = "auto"
    if devices * machines > 1:
        # A task may own a parameter that no loss reaches; that must not work on one device and fail on two.
        strategy = DDPStrategy(timeout=ranks.TIMEOUT, find_unused_parameters=True)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=machines,
            strategy=strategy,
            deterministic=True if run.deterministic else None,
            max_epochs=1,
            accumulate_grad_batches=run.optim.accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    # Its SIGTERM handler talks to the other ranks from inside the handler, which hangs when all of them get the signal.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _restored(run: Run, folder: RunFolder, source: Source, total: int) -> Restored:
    folder.lock()
    restored = Checkpoints(folder.checkpoints, run.checkpoint.keep).newest()
    if restored is None:
        raise CheckpointError(f"{folder.path}: has no checkpoint to go on from; start the run again")
    require_same_run(restored.state, run, source)
    if restored.step > total:
        raise ConfigError(f"budget: the run has taken {restored.step} steps already, more than the {total} asked for")
    return restored


def _take_up(run: Run, folder: RunFolder, restored: Restored) -> None:
    """Tidy the folder for going on, now that nothing can be refused any more."""
    if ranks.rank() != 0:
        return
    checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
    for path in restored.damaged:
        checkpoints.set_aside(path)
    checkpoints.sweep()
    folder.cut_metrics(restored.step)
    folder.write_run(run)
    log.info("going on from step %d", restored.step)


@contextmanager
def _outcome(folder: RunFolder) -> Iterator[None]:
    """Write down how a run ended, whichever way it did."""
    try:
        yield
    except BaseException as error:
        status = (
            "stopped"
            if isinstance(error, StoppedError)
            else "diverged"
            if isinstance(error, DivergedError)
            else "failed"
        )
        log.error("%s: %s", status, error)
        if ranks.rank() == 0:
            folder.update(status=status, reason=str(error))
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and its guesses about what might be wrong from the user."""
    talkers = [logging.getLogger(name) for name in _TALKERS]

    def is_problem(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    for talker in talkers:
        talker.addFilter(is_problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            # Lightning's own call of what newer versions of torch retire.
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            yield
    finally:
        for talker in talkers:
            talker.removeFilter(is_problem)
