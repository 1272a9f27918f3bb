"""committed measurements of single runs and of speed -> tables of the documentation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.text import markdown
from benchmarks.statistics import PERCENT
from ssldet.regular import read_text
from ssldet.report.sections import Table


def steps(results: Path) -> str:
    """Tabulate images per second of a pretraining step on an accelerator, by batch size and precision."""
    measured: list[Mapping[str, Any]] = json.loads(read_text(results / "gpu.json"))["results"]
    rates = {(row["form"], row["batch"]): row["images_per_second"] for row in measured if row["part"] == "steps"}
    words = {
        "plain fp32": "plain PyTorch, float32, patches without jitter",
        "fp32": "`precision=32`",
        "tf32": "the same with TF32",
        "bf16": "`precision=bf16`",
        "bf16 channels last": "the same, weights in channels-last order",
    }
    sizes = sorted({batch for _, batch in rates})
    rows = [
        (text, *("" if (rate := rates.get((form, size))) is None else f"{rate:.0f}" for size in sizes))
        for form, text in words.items()
    ]
    return markdown(Table(columns=("images a second", *(f"batch {size}" for size in sizes)), rows=rows))


def small_run(results: Path) -> str:
    """Tabulate the evaluations of one run of `detection/small` with nothing beside it, as its folder recorded them."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "small-run.json"))
    metrics = ("AP", "AP50", "AP75")
    rows = [
        (f"{point['step']:,}", f"{point['seconds'] / 60:.1f}", *(f"{PERCENT * point[name]:.1f}" for name in metrics))
        for point in measured["curve"]
    ]
    return markdown(Table(columns=("steps", "minutes", *metrics), rows=rows))


def resemblance(results: Path) -> str:
    """Tabulate how well patches of photographs are found with and without the part of the score that is not learned."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "resemblance.json"))
    curves: Mapping[str, Mapping[str, float]] = measured["patch_iou"]
    steps = list(next(iter(curves.values())))
    rows = [(words, *(f"{curve[step]:.2f}" for step in steps)) for words, curve in curves.items()]
    constant = f"{measured['patch_iou_constant']:.2f}"
    rows.append(("the best constant box", *(constant for _ in steps)))
    return markdown(Table(columns=("`patch_iou`", *(f"after {step} steps" for step in steps)), rows=rows))


def demo(results: Path) -> str:
    """Tabulate what `ssldet demo --json` printed; its folder and its report are left out of the committed file."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "demo.json"))
    starts = {"pretrained": "pretrained on 3,000 scenes without labels", "scratch": "fresh weights, same budget"}
    rows = [
        (words, *(" ".join(f"{value:.3f}" for value in measured[f"{name}_{start}"]) for name in ("ap", "ap50")))
        for start, words in starts.items()
    ]
    columns = ("start of fine-tuning, 500 labelled scenes", "AP, three seeds", "AP50, three seeds")
    table = markdown(Table(columns=columns, rows=rows))
    return (
        f"{table}\n\nPatches of held-out scenes are found with an overlap of {measured['patch_iou']:.3f}; "
        f"the best constant box reaches {measured['patch_iou_constant']:.3f}."
    )


def speed(results: Path) -> str:
    """Tabulate how many times as fast each fast way is as the plain one, and on what machine."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "speed.json"))
    rows = [
        (
            f"{row['work']} ({row['note']})" if row["note"] else row["work"],
            row["against"],
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
        )
        for row in measured["results"]
    ]
    loads = [row["load"] for row in measured["results"]]
    machine = measured["machine"]
    table = markdown(Table(columns=("work", "against", "times as fast", "half of all rounds"), rows=rows))
    where = f"{machine['processor']}, one thread, torch {machine['torch']}"
    return f"{table}\n\n{where}; {min(loads):.0f} to {max(loads):.0f} programs shared {machine['cores']} cores."
