"""Suite -> jobs and arms: the runs to make, each once, and the rows of the result.

A plan is a function of the suite and of what has been measured: if a suite chooses learning rates by a grid, an arm's
runs are planned once its trials have been measured. Planning again costs nothing, because finished runs are recognised.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from benchmarks.address import address_of, data_version
from benchmarks.networks import hands_detector, in_suite, with_heads
from benchmarks.suite import Data, Downstream, Method, Suite
from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.recipe import override
from ssldet.registry import name_of

TRIED_ON = 0.2
"""Share of the training images, 200 at most, on which a trial is measured instead of training on them: the images that
arms are measured on choose nothing."""

LEFT_OUT = "left out by --filter"
"""Why an arm that could be run has no runs."""

MeasuredValue = Callable[[str, str], float | None]
"""Address of a run, name of a metric -> its value; `None` while it has not been measured."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """The place of a run in a comparison.

    Attributes:
        verb: Whether the run pretrains or fine-tunes.
        method: Name of the method for which the run was planned first; other methods may share it.
        stage: Number of the stage among those of the same verb, from 1.
        model: Name of the backbone and the detector; empty if the suite has one model only.
        on: Name of the images to pretrain on, or of the task to fine-tune for.
        fraction: Share of the labels; `None` for pretraining.
        seed: Seed of fine-tuning; `None` for pretraining.
    """

    verb: Literal["pretrain", "finetune"]
    method: str
    stage: int
    on: str
    model: str = ""
    fraction: float | None = None
    seed: int | None = None

    @property
    def recipe(self) -> str:
        """The purpose without the seed, which is common to all runs of one recipe."""
        model = f", {self.model}" if self.model else ""
        if self.verb == "pretrain":
            return f"pretrain {self.method}{model}, stage {self.stage}, on {self.on}"
        stage = f", stage {self.stage}" if self.stage > 1 else ""
        return f"finetune {self.method}{model} for {self.on}, {self.fraction:g} of the labels{stage}"

    def __str__(self) -> str:
        """Return the purpose as one line."""
        return self.recipe if self.seed is None else f"{self.recipe}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to make.

    Attributes:
        address: Address of the run, by which `benchmarks.address` identifies it.
        purpose: Its place in the comparison.
        run: The configuration, without data and without weights of earlier stages.
        train: Data set to train on.
        val: Data set to evaluate on; `None` means no evaluation.
        start: Address of the run from whose detector it starts, or `None`.
        backbone: Address of the run from whose backbone it starts, or `None`.
        exchange: Whether the backbone of its own configuration takes the place of the one that its start has.
        unlabelled: Further images, whose labels are never read, for a task that learns from both kinds; or `None`.
        threads: Number of threads, as in `Suite.threads`.
    """

    address: str
    purpose: Purpose
    run: Run
    train: Data
    val: Data | None
    start: str | None = None
    backbone: str | None = None
    exchange: bool = False
    unlabelled: Data | None = None
    threads: int | None = None

    @property
    def title(self) -> str:
        """The purpose as one line, for messages."""
        return str(self.purpose)

    @property
    def needs(self) -> tuple[str, ...]:
        """Addresses of the runs that must have finished."""
        return tuple(address for address in (self.start, self.backbone) if address is not None)

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        images = max(1, round(data_version(self.train)[1] * self.run.data.fraction))
        return self.run.budget.total_steps(images, self.run.data.batch_size)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One combination of the suite's axes with one seed: a row of the result.

    Attributes:
        method: Name of the method.
        model: Name of the backbone and the detector.
        downstream: Name of the downstream task.
        fraction: Share of the labels.
        seed: Seed of fine-tuning.
        rate: Learning rate of fine-tuning; `None` means the recipe's.
        trial: Whether the arm only serves to choose the rate.
        jobs: Addresses of its runs in order; the last one gives the result. Empty if the arm can't be run or is not yet
            planned.
        missing: Why there are no jobs.
    """

    method: str
    model: str
    downstream: str
    fraction: float
    seed: int
    rate: float | None = None
    trial: bool = False
    jobs: tuple[str, ...] = ()
    missing: str = ""

    @property
    def name(self) -> str:
        """The name with which a filter is matched."""
        rate = "" if self.rate is None else f"/lr-{self.rate:g}"
        trial = "/trial" if self.trial else ""
        return f"{self.method}/{self.model}/{self.downstream}/{self.fraction:g}/seed-{self.seed}{rate}{trial}"

    def left_out(self) -> "Arm":
        """Return the arm without its runs."""
        return replace(self, jobs=(), missing=LEFT_OUT)


@dataclass(kw_only=True)
class Plan:
    """The runs of a suite.

    Attributes:
        suite: The suite.
        jobs: Address -> job; each job comes after those that it needs.
        arms: All rows of the result.
    """

    suite: Suite
    jobs: dict[str, Job] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)

    def add(
        self,
        purpose: Purpose,
        run: Run,
        train: Data,
        val: Data | None,
        unlabelled: Data | None = None,
        *,
        start: str | None = None,
        backbone: str | None = None,
        exchange: bool = False,
    ) -> str:
        """Add a run, unless the plan has it, and return its address.

        Args:
            purpose: Its place in the comparison.
            run: The configuration.
            train: Training images.
            val: Images to evaluate on, or `None`.
            unlabelled: Further images without labels, or `None`.
            start: As of the job.
            backbone: Likewise.
            exchange: Likewise.
        """
        threads = self.suite.threads
        measured = None if val is None else data_version(val)[0]
        inputs = {"train": data_version(train)[0], "val": measured, "start": start, "backbone": backbone}
        if unlabelled is not None:
            inputs["unlabelled"] = data_version(unlabelled)[0]
        if exchange:
            inputs["exchange"] = "backbone"
        address = address_of(run, threads=threads, **inputs)
        if address not in self.jobs:
            self.jobs[address] = Job(
                address=address, purpose=purpose, run=run, train=train, val=val, unlabelled=unlabelled,
                threads=threads, start=start, backbone=backbone, exchange=exchange,
            )  # fmt: skip
        return address

    def only(self, keeps: Callable[[str], bool]) -> "Plan":
        """Return the plan of some arms.

        Args:
            keeps: Returns whether to keep an arm, given its name.
        """
        arms = [arm if keeps(arm.name) else arm.left_out() for arm in self.arms]
        needed = {address for arm in arms for address in arm.jobs}
        return Plan(suite=self.suite, jobs={name: job for name, job in self.jobs.items() if name in needed}, arms=arms)


def plan_suite(suite: Suite, measured_value: MeasuredValue = lambda address, metric: None) -> Plan:
    """Plan all runs of a suite that can be planned.

    Args:
        suite: The suite.
        measured_value: Looks up what has been measured.

    Raises:
        ConfigError: The suite is no fair comparison; the message has one line per problem.
        DataError: A data set can't be used.
    """
    plan = Plan(suite=suite.check())
    for downstream in suite.downstreams:
        for model in suite.models():
            for method in suite.methods:
                for fraction in downstream.fractions or suite.fractions:
                    plan.arms += _arms(plan, method, model, downstream, fraction, measured_value)
    return plan


def model_name(model: DetectorConfig) -> str:
    """Return a name made of the backbone, if there is one, and the detector."""
    detector, backbone = name_of(DetectorConfig.group, type(model)), backbone_of(model)
    if backbone is None:
        return detector
    weights = f".{backbone.weights}" if backbone.weights else ""
    return f"{backbone.name.replace('/', '-')}{weights}-{detector}"


def _arms(
    plan: Plan,
    method: Method,
    model: DetectorConfig,
    downstream: Downstream,
    fraction: float,
    measured_value: MeasuredValue,
) -> Iterator[Arm]:
    suite = plan.suite
    arm = Arm(method=method.name, model=model_name(model), downstream=downstream.name, fraction=fraction, seed=0)
    missing = method.missing
    if method.role == "backbone" and backbone_of(model) is None:
        missing = f"{arm.model} has no backbone to pretrain"
    if missing:
        yield from (replace(arm, seed=seed, missing=missing) for seed in suite.seeds)
        return
    rate: float | None = None
    if suite.rates:
        # Another seed, so that the runs that choose the rate are not among those that are compared.
        seed = max(suite.seeds) + 1
        tried = partial(_chain, plan, method, model, downstream, fraction, seed, trial=True)
        chains = {rate: tried(rate) for rate in suite.rates}
        trials = [replace(arm, seed=seed, rate=rate, trial=True, jobs=jobs) for rate, jobs in chains.items()]
        yield from trials
        measured = [(measured_value(trial.jobs[-1], downstream.metric), trial.rate) for trial in trials]
        if any(value is None for value, _ in measured):
            yield from (replace(arm, seed=seed, missing="the learning rate is not chosen yet") for seed in suite.seeds)
            return
        rate = max(measured, key=lambda pair: pair[0] or 0.0)[1]
    for seed in suite.seeds:
        jobs = _chain(plan, method, model, downstream, fraction, seed, rate)
        yield replace(arm, seed=seed, rate=rate, jobs=jobs)


def _chain(
    plan: Plan,
    method: Method,
    model: DetectorConfig,
    downstream: Downstream,
    fraction: float,
    seed: int,
    rate: float | None,
    *,
    trial: bool = False,
) -> tuple[str, ...]:
    """Plan pretraining and fine-tuning of one arm; return all addresses in order."""
    if method.weights is not None and backbone_of(model) is not None:
        model = override(model, {"backbone.weights": method.weights})
    kind = name_of(DetectorConfig.group, type(model))
    runs = _ArmRuns(plan=plan, method=method, model=model, downstream=downstream, trial=trial)
    if method.taught is not None:
        runs.teach(replace(method.taught, seed=seed % plan.suite.pretrainings))
    for number, stage in enumerate(method.stages_of.get(kind, method.stages), start=1):
        runs.pretrain(number, replace(stage, seed=seed % plan.suite.pretrainings))
    changes: dict[str, object] = {"seed": seed, "data.fraction": fraction, "data.fraction_seed": seed}
    changes |= dict(method.finetuning) | ({} if rate is None else {"optim.lr": rate})
    changes |= {"data.held_out": TRIED_ON} if trial else {}
    for number, stage in enumerate(downstream.stages_of.get(kind, downstream.stages), start=1):
        runs.finetune(number, override(stage, changes), fraction, seed)
    return tuple(runs.addresses)


@dataclass(kw_only=True)
class _ArmRuns:
    """The runs of one arm, each of which goes on from what the one before has left.

    Attributes:
        plan: What the runs are added to.
        method: The pretraining method.
        model: The suite's detector, with the backbone's weights of the method.
        downstream: The downstream task.
        trial: Whether the arm only serves to choose the rate.
        addresses: The runs so far, in order.
        backbone: The last run that left a backbone.
        detector: The last run that left a whole detector.
        exchange: Whether the next run exchanges that detector's backbone for the suite's.
    """

    plan: Plan
    method: Method
    model: DetectorConfig
    downstream: Downstream
    trial: bool
    addresses: list[str] = field(default_factory=list)
    backbone: str | None = None
    detector: str | None = None
    exchange: bool = False

    def teach(self, run: Run) -> None:
        """Add the supervised run whose detector is gone on from behind another backbone."""
        train = self.downstream.train
        self.detector = self._added(self.plan.add(self._pretraining_on(train, 0), run, train, None))
        self.exchange = True

    def pretrain(self, number: int, stage: Run) -> None:
        """Add a stage of pretraining."""
        images = self.method.labelled or self.downstream.unlabelled
        goes_on, whole = self.method.taught is not None, hands_detector(stage)
        run = in_suite(stage, self.model, None if goes_on else self.backbone)
        # Tasks that train a backbone alone, or on other labels, would need other images for their evaluation.
        val = self.downstream.unlabelled_val if whole and self.method.labelled is None else None
        origin: dict[str, Any] = {"start": self.detector} if goes_on else {"backbone": self.backbone}
        purpose = self._pretraining_on(images, number)
        address = self.plan.add(purpose, run, images, val, exchange=self.exchange, **origin)
        self.backbone, self.exchange = self._added(address), False
        # What a stage leaves alone, it hands on; see `ssldet.verbs.handing`.
        self.detector = address if whole or goes_on else None

    def finetune(self, number: int, stage: Run, fraction: float, seed: int) -> None:
        """Add a stage of fine-tuning."""
        kept = self.backbone if self.detector is None else None
        run = replace(stage, detector=with_heads(self.model, stage, kept))
        purpose = Purpose(
            verb="finetune", method=self.method.name, stage=number, on=self.downstream.name, model=self._shown,
            fraction=fraction, seed=seed,
        )  # fmt: skip
        further = self.downstream.unlabelled if stage.task.needs.unlabelled else None
        origin: dict[str, Any] = {"start": self.detector, "backbone": kept, "exchange": self.exchange}
        val = None if self.trial else self.downstream.val
        address = self.plan.add(purpose, run, self.downstream.train, val, further, **origin)
        self.detector, self.exchange = self._added(address), False

    def _added(self, address: str) -> str:
        self.addresses.append(address)
        return address

    def _pretraining_on(self, images: Data, number: int) -> Purpose:
        return Purpose(verb="pretrain", method=self.method.name, stage=number, on=images.name, model=self._shown)

    @property
    def _shown(self) -> str:
        return model_name(self.model) if len(self.plan.suite.models()) > 1 else ""
