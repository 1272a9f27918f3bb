"""committed results, published figures -> whether to pretrain: one case per row, with its figures and their source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from benchmarks.published import TABLES
from benchmarks.report.tables_of_suites import in_words, of_suite
from benchmarks.report.text import markdown
from benchmarks.statistics import PERCENT, Difference, Summary, differences, differences_over_shares, summaries
from ssldet.regular import read_text
from ssldet.report.sections import Table

IMAGES = "1,051"
"""Photographs without labels in the suites on photographs: 755, and the 296 to fine-tune on."""
IMAGENET = "ImageNet's labels"
OURS = "ours, [report](results/{}/report.md)"
One = TypeVar("One", Summary, Difference)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to do in one situation.

    Attributes:
        labels: Labelled images.
        images: Number of images without labels.
        backbone: What the backbone has learned from.
        advice: What to do.
        figures: What was measured.
        source: Who measured it: ours, published or unknown.
    """

    labels: str
    images: str = "any"
    backbone: str = "anything"
    advice: str
    figures: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A situation of which a committed suite holds two methods.

    Attributes:
        labels: Labelled images.
        action: What the second method does, in the imperative.
        suite: Name of the suite's file.
        low: Name of the method that does without.
        high: Name of the method that does it.
        only: Task, share of the labels or model, where the suite has several.
        images: Number of images without labels.
        backbone: What the backbone has learned from.
    """

    labels: str
    action: str
    suite: str
    low: str = "backbone"
    high: str = "own_group"
    only: Mapping[str, str | float] = field(default_factory=dict)
    images: str = IMAGES
    backbone: str = IMAGENET

    def case(self, results: Path) -> Case:
        """Return what was measured, and advice that is as sure as that.

        Args:
            results: Folder of committed results.
        """
        suite = of_suite(results, self.suite)
        before, after = (self._of(summaries(suite), method) for method in (self.low, self.high))
        difference = self._of(differences(suite, self.low), self.high)
        means = " → ".join(f"{PERCENT * one.mean:.1f}" for one in (before, after))
        return Case(
            labels=self.labels,
            images=self.images,
            backbone=self.backbone,
            advice=advice(self.action, difference),
            figures=f"{after.metric} {means}, {in_words(difference)}",
            source=OURS.format(self.suite),
        )

    def _of(self, found: list[One], method: str) -> One:
        (one,) = (
            one
            for one in found
            if one.method == method and all(getattr(one, axis) == value for axis, value in self.only.items())
        )
        return one


def advice(action: str, difference: Difference) -> str:
    """Say whether to do what brought a difference, as surely as it was seen.

    Args:
        action: What was done, in the imperative.
        difference: What it brought.
    """
    if difference.significant:
        return f"**{action}**" if difference.mean > 0 else f"do not {action}"
    if all(value > 0 for value in difference.values):
        return f"{action}: ahead in every seed, not beyond chance"
    return f"{action}, or not: nothing is shown"


FEW = "ours-few-labels-tiny"
SHARES = {0.01: 3, 0.02: 6, 0.05: 15, 0.1: 30}
"""Share of the 296 labelled photographs -> how many these are."""
TEN_SHOTS = Measured(
    labels="ten objects of each of six classes",
    action="pretrain",
    suite=FEW,
    only={"downstream": "ten_shots"},
)
WITH_MANY = Measured(
    labels="296 photographs, six classes",
    action="pretrain",
    suite="ours-small-tiny",
    only={"downstream": "own", "fraction": 1.0},
)
OTHERS = (
    Measured(
        labels="30 photographs, and a detector trained on 53 of COCO",
        action="start from that detector",
        suite=FEW,
        high="supervised",
        only={"downstream": "own", "fraction": 0.1},
    ),
    Measured(
        labels="296 photographs, and a detector whose backbone you exchange",
        action="keep its transformer, with [`--backbone`](joint.md#distillation-what-a-better-backbone-sees)",
        suite="ours-backbone-swap-tiny",
        high="exchanged",
    ),
    Measured(
        labels="300 generated scenes, Deformable DETR with [learned starts](detectors.md#learned-nothing)",
        action="pretrain",
        suite="zoo-detectors-tiny",
        low="none",
        high="pretrained",
        only={"model": "tiny-deformable_detr"},
        images="3,000",
        backbone="nothing: fresh",
    ),
)


def decisions(results: Path) -> str:
    """Tabulate every case.

    Args:
        results: Folder of committed results.
    """
    ours = [_few(results), TEN_SHOTS.case(results), WITH_MANY.case(results), _scenes(results)]
    cases = [WITHOUT_LABELS, *ours, *_published(), *(one.case(results) for one in OTHERS), UNLIKE]
    rows = [(one.labels, one.images, one.backbone, one.advice, one.figures, one.source) for one in cases]
    columns = ("your labels", "images without", "backbone knows", "do first", "figures, from → to", "source")
    return markdown(Table(columns=columns, rows=rows))


def found(results: Path) -> str:
    """Tabulate those cases for a newcomer that one command of this project measures."""
    cases = [_scenes(results), _few(results), TEN_SHOTS.case(results), WITH_MANY.case(results)]
    rows = [(one.labels, one.backbone, one.figures) for one in cases]
    columns = ("labelled", "backbone knows", "held-out AP50 in points, transformer from scratch → pretrained")
    return markdown(Table(columns=columns, rows=rows))


WITHOUT_LABELS = Case(
    labels="none",
    advice="pretrain; look for patches with `predict --query`, or label a few images",
    figures="without labels no class is learned",
    source="by definition",
)
UNLIKE = Case(
    labels="any, of images unlike photographs: X-rays, satellites, many channels",
    advice="measure it, with the commands below",
    figures="nobody has shown it",
    source="unknown",
)


def _few(results: Path) -> Case:
    suite = of_suite(results, FEW)
    means = {(one.fraction, one.method): PERCENT * one.mean for one in summaries(suite) if one.downstream == "own"}
    pairs = [f"{means[share, 'backbone']:.1f} → {means[share, 'own_group']:.1f}" for share in SHARES]
    (gain,) = (one for one in differences_over_shares(suite, "backbone", "own") if one.method == "own_group")
    return Case(
        labels=f"{', '.join(map(str, SHARES.values()))} photographs, six classes",
        images=IMAGES,
        backbone=IMAGENET,
        advice=advice("pretrain", gain),
        figures=f"AP50 {', '.join(pairs)}; in the mean {PERCENT * gain.mean:+.1f}, {in_words(gain)}",
        source=OURS.format(FEW),
    )


def _scenes(results: Path) -> Case:
    demo = json.loads(read_text(results / "demo.json"))
    scratch, pretrained = demo["ap50_scratch"], demo["ap50_pretrained"]
    ahead = sum(high > low for low, high in zip(scratch, pretrained, strict=True))
    means = " → ".join(f"{PERCENT * fmean(values):.1f}" for values in (scratch, pretrained))
    return Case(
        labels="500 generated scenes",
        images="3,000",
        backbone="nothing: fresh",
        advice="pretrain" if ahead == len(scratch) else "nothing is shown",
        figures=f"AP50 {means}, better in {ahead} of {len(scratch)} seeds",
        source="ours, `make demo`",
    )


def _published() -> list[Case]:
    few = TABLES["few_coco"]
    shares = [[few.figure(f"{start}/{share}", "AP") for start in ("SwAV", "DETReg")] for share in ("1%", "5%", "10%")]
    cases = [
        Case(
            labels="1, 5, 10 % of COCO, Deformable DETR",
            images="118,000",
            backbone="photographs (SwAV)",
            advice="pretrain by regions (`detreg`)",
            figures="AP " + ", ".join(f"{low:.1f} → {high:.1f}" for low, high in shares),
            source="published: DETReg",
        )
    ]
    for labels, name, start, advice in (
        ("VOC, 16,551, DETR", "table1", "DETR", "pretrain"),
        ("COCO, 118,000, DETR", "table2", "DETR SwAV CNN", "pretrain only if training must be short"),
    ):
        table = TABLES[name]
        pairs = [[table.figure(f"{one}/{epochs}", "AP") for one in (start, "UP-DETR")] for epochs in (150, 300)]
        cases.append(
            Case(
                labels=labels,
                images="1.3 million",
                backbone="photographs (SwAV)",
                advice=advice,
                figures="AP " + ", ".join(f"{low} → {high}" for low, high in pairs) + " in 150, 300 epochs",
                source="published: UP-DETR",
            )
        )
    return cases
