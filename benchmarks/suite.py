"""Data classes of a comparison: data sets, pretraining methods, downstream tasks, claims and suites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import override
from ssldet.registry import name_of

Scale = Literal["tiny", "full"]


@dataclass(frozen=True, kw_only=True)
class ImagesOnDisk:
    """A data set on disk.

    Attributes:
        name: Name of the set in reports.
        specs: Data specifications, as recipes take them.
    """

    name: str
    specs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GeneratedScenes:
    """A data set of generated scenes, which is drawn when it is needed.

    Attributes:
        name: Name of the set in reports.
        images: Number of images.
        seed: Sets with different seeds share no image.
        form: Images without labels, images with boxes, or images with panoptic labels.
    """

    name: str
    images: int
    seed: int
    form: Literal["images", "coco", "panoptic"] = "images"


Data = ImagesOnDisk | GeneratedScenes


@dataclass(frozen=True, kw_only=True)
class Method:
    """A pretraining method.

    Attributes:
        name: Short name, unique within a suite.
        title: Description in a few words.
        stages: Pretraining runs in order, without data and seed, each of which takes its backbone from the one before;
            empty for no pretraining.
        stages_of: Registered name of a detector -> its stages instead, if it has settings or a pretraining of its own.
        role: Whether it is one of the two required baselines: `none` starts with fresh weights, `backbone` with a
            pretrained backbone and a fresh transformer.
        weights: Published weights of the backbone with which it starts; `None` keeps those of its runs.
        labelled: Labelled images on which its stages train, for a supervised start; `None` takes the images without
            labels of the downstream task.
        taught: Supervised run on the labelled images of the downstream task, with a backbone of its own. What comes
            next, a stage or fine-tuning, goes on from its detector, with the suite's backbone in exchange for that one.
        finetuning: Dotted fields of the fine-tuning runs and the values that this method gives them.
        missing: Why the method can't be run here, which the report states; empty if it can.
    """

    name: str
    title: str
    stages: tuple[Run, ...] = ()
    stages_of: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)
    role: Literal["none", "backbone", "method"] = "method"
    weights: str | None = None
    labelled: Data | None = None
    taught: Run | None = None
    finetuning: Mapping[str, object] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """A downstream task: the data and runs of fine-tuning and evaluation.

    Attributes:
        name: Short name, unique within a suite.
        stages: Fine-tuning runs in order, without data and seed; the last one is evaluated.
        stages_of: Registered name of a detector -> its stages instead, if it has settings of its own.
        train: Labelled images to fine-tune on.
        val: Labelled images to evaluate on.
        unlabelled: Images to pretrain on.
        unlabelled_val: Images to evaluate pretraining on, or `None`.
        metric: Name of the metric that is compared.
        row: Method -> the corresponding row of the suite's published table.
        fractions: Shares of the labelled images for this task; empty takes the suite's.
    """

    name: str
    stages: tuple[Run, ...]
    train: Data
    val: Data
    unlabelled: Data
    unlabelled_val: Data | None = None
    stages_of: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)
    metric: str = "AP"
    row: Mapping[str, str] = field(default_factory=dict)
    fractions: tuple[float, ...] = ()


def all_stages(entry: Method | Downstream) -> list[Run]:
    """Return the runs of a method or task for all detectors.

    Args:
        entry: The method or the task.
    """
    return [*entry.stages, *chain.from_iterable(entry.stages_of.values())]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published or our own statement that orders two methods, which a suite checks on each of its tasks.

    Attributes:
        words: The statement.
        higher: Name of the first method.
        lower: Name of the second method.
        kind: `at least`: the first is at least as good; `no gain`: the first is not better.
    """

    words: str
    higher: str
    lower: str
    kind: Literal["at least", "no gain"] = "at least"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A whole comparison: methods x backbones x detectors x downstream tasks x label fractions x seeds.

    Attributes:
        name: Name on the command line.
        question: The question that the suite answers.
        scale: `full` as published, `tiny` with the same axes in minutes.
        methods: Pretraining methods, including both baselines.
        backbones: Backbones.
        detectors: Detectors, each of which is combined with each backbone, or stands alone if it takes none; all
            methods get the same models.
        downstreams: Downstream tasks.
        fractions: Shares of the labelled images.
        seeds: Seeds of fine-tuning; the order of images is the same for every method.
        pretrainings: Number of pretraining runs per method, among which the seeds are divided.
        rates: Learning rates of fine-tuning, of which every method gets the best one by a further seed, measured on a
            share of the training images; empty keeps those of the recipes.
        threads: Number of threads of every run, because it changes the last digits of sums; `None` leaves it to the
            machine.
        claims: Claims to check.
        tables: Names of published tables to show in the report.
    """

    name: str
    question: str
    scale: Scale = "tiny"
    methods: tuple[Method, ...]
    backbones: tuple[BackboneConfig, ...]
    detectors: tuple[DetectorConfig, ...]
    downstreams: tuple[Downstream, ...]
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    pretrainings: int = 1
    rates: tuple[float, ...] = ()
    threads: int | None = None
    claims: tuple[Claim, ...] = ()
    tables: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what keeps this suite from being a fair comparison."""
        axes = ("methods", "backbones", "detectors", "downstreams", "fractions", "seeds")
        wrong = [f"{what}: none; name at least one" for what in axes if not getattr(self, what)]
        for role, words in (("none", "no pretraining"), ("backbone", "backbone-only pretraining")):
            if not any(method.role == role for method in self.methods):
                wrong.append(f"methods: the baseline of {words} is missing; add a method with role={role!r}")
        for what, values in (
            ("methods", [method.name for method in self.methods]),
            ("downstreams", [downstream.name for downstream in self.downstreams]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            twice = sorted({name for name in values if values.count(name) > 1})
            wrong += [f"{what}: {name} occurs twice" for name in twice]
        shares = [*self.fractions, *chain.from_iterable(entry.fractions for entry in self.downstreams)]
        wrong += [f"fractions: {share:g} is not between 0 and 1" for share in shares if not 0 < share <= 1]
        if self.pretrainings < 1:
            wrong.append(f"pretrainings: {self.pretrainings}; at least one")
        known = [name_of(DetectorConfig.group, type(detector)) for detector in self.detectors]
        entries: list[Method | Downstream] = [*self.methods, *self.downstreams]
        for entry in entries:
            unknown = [name for name in entry.stages_of if name not in known]
            wrong += [f"{entry.name}: has stages of {name!r}, and no such detector is compared" for name in unknown]
        return wrong + [line for claim in self.claims for line in self._problems_of(claim)]

    def _problems_of(self, claim: Claim) -> list[str]:
        methods = [method.name for method in self.methods]
        return [
            f"claims: {name!r} is not in the suite{suggest(name, methods)}"
            for name in (claim.higher, claim.lower)
            if name not in methods
        ]

    def check(self) -> "Suite":
        """Return this suite if it can be run.

        Raises:
            ConfigError: The suite is invalid; the message has one line per problem.
        """
        if wrong := self.problems():
            raise ConfigError([f"suite {self.name}: {line}" for line in wrong])
        return self

    def data(self) -> list[Data]:
        """Return every data set that a run reads or is measured on, once each."""
        of_tasks = ((task.unlabelled, task.unlabelled_val, task.train, task.val) for task in self.downstreams)
        found = [*chain.from_iterable(of_tasks), *(method.labelled for method in self.methods)]
        return list(dict.fromkeys(one for one in found if one is not None))

    def models(self) -> list[DetectorConfig]:
        """Return every combination of a detector and a backbone, and the detectors that take none."""
        pluggable = [detector for detector in self.detectors if backbone_of(detector) is not None]
        combined = [override(detector, {"backbone": backbone}) for backbone in self.backbones for detector in pluggable]
        return combined + [detector for detector in self.detectors if backbone_of(detector) is None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The choices with which a suite is built.

    Attributes:
        scale: Scale of the suite.
        places: Name -> data specification, as given on the command line.
        seeds: Number of seeds; `None` takes the suite's own.
    """

    scale: Scale = "tiny"
    places: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None

    def given(self, *names: str) -> list[ImagesOnDisk]:
        """Return data sets by name.

        Args:
            names: Names of the data sets; commas separate several specifications of one set.

        Raises:
            ConfigError: A data set was not given; the message has one line per missing set.
        """
        if wrong := [
            f"{name}: not given; add --data {name}=SPECIFICATION (see docs/benchmarks.md for what the suite expects)"
            for name in names
            if name not in self.places
        ]:
            raise ConfigError(wrong)
        return [ImagesOnDisk(name=name, specs=tuple(self.places[name].split(","))) for name in names]

    def numbers(self, usual: int) -> tuple[int, ...]:
        """Return the seeds.

        Args:
            usual: Number of seeds if none was chosen.
        """
        return tuple(range(self.seeds or usual))


SuiteFunction = Callable[[Setting], Suite]
