"""Suite -> jobs and arms: what has to be trained, once each, and which results belong together.

A plan is a function of the suite and of what is known already: where rates are chosen by a grid, an arm's runs are
planned when its trials have been measured. Planning again costs nothing, because work that is done is recognised.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.address import address_of, data_version
from benchmarks.suite import Data, Downstream, Method, Suite
from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.recipe import override
from ssldet.registry import name_of

Known = Callable[[str, str], float | None]
"""Address of a run, name of a measure -> its value; none while it has not been measured."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a run is for.

    Attributes:
        verb: What is done.
        method: Name of the method that it was first planned for; others may share it.
        stage: Number of the stage among those of its verb, from 1.
        on: Name of the images that it pretrains on, or of the task that it fine-tunes for.
        fraction: Share of the labels; of fine-tuning.
        seed: Seed of fine-tuning.
    """

    verb: Literal["pretrain", "finetune"]
    method: str
    stage: int
    on: str
    fraction: float | None = None
    seed: int | None = None

    @property
    def recipe(self) -> str:
        """Say it without the seed: all that the runs of one recipe have in common."""
        if self.verb == "pretrain":
            return f"pretrain {self.method}, stage {self.stage}, on {self.on}"
        stage = f", stage {self.stage}" if self.stage > 1 else ""
        return f"finetune {self.method} for {self.on}, {self.fraction:g} of the labels{stage}"

    def __str__(self) -> str:
        """Say it in one line."""
        return self.recipe if self.seed is None else f"{self.recipe}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to make.

    Attributes:
        address: See `benchmarks.address`.
        purpose: What it is for.
        run: The configuration, without data and without weights of earlier stages.
        train: What it trains on.
        val: What it is measured on; none measures nothing.
        start: Address of the run whose detector it starts from.
        backbone: Address of the run whose backbone it starts from.
        threads: See `Suite.threads`.
    """

    address: str
    purpose: Purpose
    run: Run
    train: Data
    val: Data | None
    start: str | None = None
    backbone: str | None = None
    threads: int | None = None

    @property
    def title(self) -> str:
        """What it is, for people."""
        return str(self.purpose)

    @property
    def needs(self) -> tuple[str, ...]:
        """Addresses of the runs that must have finished."""
        return tuple(address for address in (self.start, self.backbone) if address is not None)

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        images = max(1, round(data_version(self.train)[1] * self.run.data.fraction))
        return self.run.budget.total_steps(images, self.run.data.batch_size)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way through the suite with one seed: the row of a result.

    Attributes:
        method: Name of the method.
        model: Name of the backbone and the detector.
        downstream: Name of the downstream task.
        fraction: Share of the labels.
        seed: Seed of fine-tuning.
        rate: Learning rate of fine-tuning; none is the recipe's.
        trial: Whether it only helps to choose the rate.
        jobs: Addresses in order; the last is measured. Empty where it can't be run or is not yet planned.
        missing: Why there are none.
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
        """What a filter is matched with."""
        rate = "" if self.rate is None else f"/lr-{self.rate:g}"
        trial = "/trial" if self.trial else ""
        return f"{self.method}/{self.model}/{self.downstream}/{self.fraction:g}/seed-{self.seed}{rate}{trial}"


@dataclass(kw_only=True)
class Plan:
    """What a suite comes to.

    Attributes:
        suite: The suite.
        jobs: Address -> job, each after those that it needs.
        arms: Every row of the result.
    """

    suite: Suite
    jobs: dict[str, Job] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)

    def add(self, purpose: Purpose, run: Run, train: Data, val: Data | None, **origin: str | None) -> str:
        """Add a run unless it is there, and return its address.

        Args:
            purpose: What it is for.
            run: The configuration.
            train: Training images.
            val: Images to measure on.
            origin: `start` and `backbone` of the job.
        """
        threads = self.suite.threads
        measured = None if val is None else data_version(val)[0]
        address = address_of(run, threads=threads, train=data_version(train)[0], val=measured, **origin)
        if address not in self.jobs:
            self.jobs[address] = Job(
                address=address, purpose=purpose, run=run, train=train, val=val, threads=threads, **origin
            )
        return address

    def only(self, wanted: Callable[[str], bool]) -> "Plan":
        """Return the plan of some arms.

        Args:
            wanted: Takes the name of an arm.
        """
        arms = [arm if wanted(arm.name) else replace(arm, jobs=(), missing="left out by --filter") for arm in self.arms]
        needed = {address for arm in arms for address in arm.jobs}
        return Plan(suite=self.suite, jobs={name: job for name, job in self.jobs.items() if name in needed}, arms=arms)


def plan_suite(suite: Suite, known: Known = lambda address, metric: None) -> Plan:
    """Plan what can be planned.

    Args:
        suite: The suite.
        known: What has been measured.

    Raises:
        ConfigError: The suite is no honest comparison; with one line a problem.
        DataError: A set of images can't be used.
    """
    plan = Plan(suite=suite.check())
    for downstream in suite.downstreams:
        for model in suite.models():
            for method in suite.methods:
                for fraction in suite.fractions:
                    plan.arms += _arms(plan, method, model, downstream, fraction, known)
    return plan


def model_name(model: DetectorConfig) -> str:
    """Return backbone, if there is one, and detector in two words."""
    detector, backbone = name_of(DetectorConfig.group, type(model)), backbone_of(model)
    if backbone is None:
        return detector
    weights = f".{backbone.weights}" if backbone.weights else ""
    return f"{backbone.name.replace('/', '-')}{weights}-{detector}"


def _arms(
    plan: Plan, method: Method, model: DetectorConfig, downstream: Downstream, fraction: float, known: Known
) -> Iterator[Arm]:
    suite = plan.suite
    arm = Arm(method=method.name, model=model_name(model), downstream=downstream.name, fraction=fraction, seed=0)
    if method.missing:
        yield from (replace(arm, seed=seed, missing=method.missing) for seed in suite.seeds)
        return
    rate: float | None = None
    if suite.rates:
        # A seed of its own: the runs that choose the rate are not among those that are compared.
        seed = max(suite.seeds) + 1
        chains = {rate: _chain(plan, method, model, downstream, fraction, seed, rate) for rate in suite.rates}
        trials = [replace(arm, seed=seed, rate=rate, trial=True, jobs=jobs) for rate, jobs in chains.items()]
        yield from trials
        measured = [(known(trial.jobs[-1], downstream.metric), trial.rate) for trial in trials]
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
) -> tuple[str, ...]:
    """Plan pretraining and fine-tuning of one arm; returns all addresses in order."""
    if method.weights is not None:
        model = override(model, {"backbone.weights": method.weights})
    chain: list[str] = []
    backbone = detector = None
    for number, stage in enumerate(method.stages, start=1):
        purpose = Purpose(verb="pretrain", method=method.name, stage=number, on=downstream.unlabelled.name)
        run = replace(_pretraining(stage, model, backbone), seed=seed % plan.suite.pretrainings)
        whole = _hands_detector(stage)
        # Tasks that teach a backbone alone are measured on labelled images, if at all.
        val = downstream.unlabelled_val if whole else None
        chain.append(plan.add(purpose, run, downstream.unlabelled, val, backbone=backbone))
        backbone, detector = chain[-1], (chain[-1] if whole else None)
    for number, stage in enumerate(downstream.stages, start=1):
        kept = backbone if detector is None else None
        changes: dict[str, object] = {"seed": seed, "data.fraction": fraction, "data.fraction_seed": seed}
        changes |= {} if rate is None else {"optim.lr": rate}
        run = override(replace(stage, detector=_with_heads(model, stage, kept)), changes)
        purpose = Purpose(
            verb="finetune", method=method.name, stage=number, on=downstream.name, fraction=fraction, seed=seed
        )
        chain.append(plan.add(purpose, run, downstream.train, downstream.val, start=detector, backbone=kept))
        detector = chain[-1]
    return tuple(chain)


def _hands_detector(stage: Run) -> bool:
    return not stage.task.stays_behind("decoder")


def _pretraining(stage: Run, model: DetectorConfig, backbone: str | None) -> Run:
    """Put the suite's network into a pretraining run.

    A task that only teaches the backbone keeps what its recipe says of norms and of what is frozen, because it can't
    learn otherwise; the network is the same.
    """
    network = backbone_of(model)
    classes: dict[str, object] = {"num_classes": stage.detector.num_classes}
    if network is None:
        return replace(stage, detector=override(model, classes) if _hands_detector(stage) else stage.detector)
    weights = {"backbone.weights": None if backbone else network.weights}
    if _hands_detector(stage):
        detector = override(model, weights | classes)
    else:
        same = {f"backbone.{name}": getattr(network, name) for name in ("name", "output_stride", "tiny_channels")}
        detector = override(stage.detector, weights | same)
    return replace(stage, detector=detector)


def _with_heads(model: DetectorConfig, stage: Run, backbone: str | None) -> DetectorConfig:
    """Return the suite's detector with the heads that a fine-tuning run asks for."""
    changes: dict[str, object] = {"num_classes": stage.detector.num_classes}
    changes |= {"backbone.weights": None} if backbone else {}
    changes |= {"masks": True} if getattr(stage.detector, "masks", False) else {}
    return override(model, changes)
