"""`recorded.json`, the runs that `python -m benchmarks record` makes -> tables of the documentation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.text import markdown
from benchmarks.statistics import PERCENT
from ssldet.regular import read_text
from ssldet.report.sections import Table


def _rows(results: Path, name: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = json.loads(read_text(results / "recorded.json"))[name]["rows"]
    return rows


def collapse(results: Path) -> str:
    """Tabulate how features of a learning backbone spread with and without what holds off a collapse."""
    measured = _rows(results, "collapse")
    rows = [
        (
            "fresh weights" if row["when"] == "first step" else row["run"],
            f"{row['feature_std']:.2f}",
            f"{row['effective_rank']:.1f}",
        )
        for place, row in enumerate(measured)
        if place == 0 or row["when"] == "last step"
    ]
    return markdown(
        Table(columns=("60 steps on 24 generated scenes, one seed", "`feature_std`", "`effective_rank`"), rows=rows)
    )


def one_shot(results: Path, name: str) -> str:
    """Tabulate AP50 of seen and held-out classes, where queries show what is there, and where they show every class.

    Args:
        results: Folder of committed results.
        name: The record.
    """
    rows = []
    for row in _rows(results, name):
        for place, words in (("train", "those of training"), ("others", "others")):
            figures = [row[f"{place}_{asked}_{kind}"] for kind in ("seen", "unseen") for asked in ("present", "all")]
            share = f", `absent_share={row['absent_share']:g}`" if "absent_share" in row else ""
            start = f"{row['start']}{share}, {row['steps']} steps"
            rows.append((start, words, *(f"{PERCENT * figure:.1f}" for figure in figures)))
    kinds = [f"{kind}, {asked}" for kind in ("seen", "held out") for asked in ("there", "all asked for")]
    return markdown(Table(columns=("start", "images", *kinds), rows=rows))


def panoptic(results: Path) -> str:
    """Tabulate panoptic quality on generated scenes."""
    rows = [
        (
            f"{row['images']}: {row['steps'][0]} steps of boxes, {row['steps'][1]} of masks",
            row["measured_on"],
            *(f"{PERCENT * row[name]:.1f}" for name in ("PQ", "PQ_things", "PQ_stuff", "AP_mask")),
        )
        for row in _rows(results, "panoptic")
    ]
    return markdown(Table(columns=("scenes to train on", "measured on", "PQ", "things", "stuff", "mask AP"), rows=rows))


def backbones(results: Path) -> str:
    """Tabulate how often nearest neighbours agree with folder names, before and after pretraining a backbone."""
    rows = [
        (f"`{row['recipe']}`, {row['steps']} steps", *(f"{row[name]:.3f}" for name in ("fresh", "learned", "chance")))
        for row in _rows(results, "backbones")
    ]
    return markdown(Table(columns=("recipe", "`knn_top1` of fresh weights", "pretrained", "`knn_chance`"), rows=rows))
