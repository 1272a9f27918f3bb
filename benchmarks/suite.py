"""nouns of a comparison: what is pretrained how, on what network, for which tasks, and how often."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import override

Scale = Literal["tiny", "full"]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images that lie on disk.

    Attributes:
        name: What a report calls them.
        specs: Data specifications, as recipes take them.
    """

    name: str
    specs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Scenes that are drawn where they are needed.

    Attributes:
        name: What a report calls them.
        images: How many.
        seed: Sets with different seeds share no image.
        form: Bare images, images with boxes, or images with boxes, sky and ground.
    """

    name: str
    images: int
    seed: int
    form: Literal["images", "coco", "panoptic"] = "images"


Data = Given | Generated


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to pretrain.

    Attributes:
        name: Short, unique within a suite.
        title: What it is, in a few words.
        stages: Pretraining runs in order, without data and seed, each of which takes its backbone from the one before;
            none for no pretraining.
        role: Which of the two honest baselines it is, if any: `none` begins with fresh weights, `backbone` brings a
            pretrained backbone and a fresh transformer.
        weights: Published weights of the backbone that it begins with; none keeps what its runs say.
        missing: Why it can't be run here; it is reported so.
    """

    name: str
    title: str
    stages: tuple[Run, ...] = ()
    role: Literal["none", "backbone", "method"] = "method"
    weights: str | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """What a detector is fine-tuned for and measured on.

    Attributes:
        name: Short, unique within a suite.
        stages: Fine-tuning runs in order, without data and seed; the last is measured.
        train: Labelled images.
        val: Labelled images to measure on.
        unlabelled: What the detector is pretrained on before.
        unlabelled_val: What pretraining is measured on.
        metric: The measure that counts.
        row: Method -> row of the suite's published table that states the same.
    """

    name: str
    stages: tuple[Run, ...]
    train: Data
    val: Data
    unlabelled: Data
    unlabelled_val: Data | None = None
    metric: str = "AP"
    row: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An ordering that somebody stated and that a suite checks on each of its tasks.

    Attributes:
        words: The statement.
        higher: Method that is stated to be better, or to be no better.
        lower: Method that it is compared with.
        kind: `at least`: the first is not worse; `no gain`: the first is not better.
    """

    words: str
    higher: str
    lower: str
    kind: Literal["at least", "no gain"] = "at least"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A whole comparison: methods x backbones x detectors x downstream tasks x label fractions x seeds.

    Attributes:
        name: As on the command line.
        question: What it asks.
        scale: `full` as published, `tiny` with the same axes in minutes.
        methods: Ways to pretrain, both baselines among them.
        backbones: Networks that look at images.
        detectors: Detectors around them; all arms of a model get the same one.
        downstreams: What is measured.
        fractions: Shares of the labelled images.
        seeds: One fine-tuning each; the same order of images for every method.
        pretrainings: Number of pretrainings of each method that seeds take turns with; one feeds all of them.
        rates: Learning rates of fine-tuning to choose from, by one further seed, for every method alike; empty keeps
            those of the recipes.
        threads: Threads of every run, because sums depend on it in their last digits; none leaves it to the machine.
        claims: Orderings to check.
        tables: Published tables that stand beside.
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
        """Say what keeps this from being an honest comparison."""
        axes = ("methods", "backbones", "detectors", "downstreams", "fractions", "seeds")
        wrong = [f"{what}: none; name at least one" for what in axes if not getattr(self, what)]
        for role, words in (("none", "no pretraining"), ("backbone", "backbone-only pretraining")):
            if not any(method.role == role for method in self.methods):
                wrong.append(f"methods: the baseline of {words} is missing; add a method with role={role!r}")
        for what, found in (
            ("methods", [method.name for method in self.methods]),
            ("downstreams", [downstream.name for downstream in self.downstreams]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            twice = sorted({name for name in found if found.count(name) > 1})
            wrong += [f"{what}: {name} occurs twice" for name in twice]
        wrong += [f"fractions: {share:g} is not between 0 and 1" for share in self.fractions if not 0 < share <= 1]
        if self.pretrainings < 1:
            wrong.append(f"pretrainings: {self.pretrainings}; at least one")
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
            ConfigError: With one line a problem.
        """
        if wrong := self.problems():
            raise ConfigError([f"suite {self.name}: {line}" for line in wrong])
        return self

    def models(self) -> list[DetectorConfig]:
        """Return every detector around every backbone."""
        return [
            override(detector, {"backbone": backbone}) for backbone in self.backbones for detector in self.detectors
        ]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a suite is made for.

    Attributes:
        scale: How large.
        places: Name -> data specification, as given on the command line.
        seeds: How many seeds; none leaves it to the suite.
    """

    scale: Scale = "tiny"
    places: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None

    def given(self, *names: str) -> list[Given]:
        """Return data by name.

        Args:
            names: What is needed; several specifications in one place are parted by commas.

        Raises:
            ConfigError: With a line for each that was not given.
        """
        if wrong := [
            f"{name}: not given; add --data {name}=SPECIFICATION (see docs/benchmarks.md for what the suite expects)"
            for name in names
            if name not in self.places
        ]:
            raise ConfigError(wrong)
        return [Given(name=name, specs=tuple(self.places[name].split(","))) for name in names]

    def numbers(self, usual: int) -> tuple[int, ...]:
        """Return the seeds.

        Args:
            usual: How many the suite takes if nobody says otherwise.
        """
        return tuple(range(self.seeds or usual))


SuiteFunction = Callable[[Setting], Suite]
