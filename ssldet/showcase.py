"""nothing -> report: pretraining and fine-tuning on generated images, compared with training from scratch.

It takes minutes on a CPU. Pretraining and both arms of fine-tuning use the recipes named `tiny`, only shorter. The arms
get the same architecture, images, budget, rates and seeds; they differ only in their initial weights.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ssldet import defaults
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.recipe import override
from ssldet.registry import find
from ssldet.report.curves import seed_curves
from ssldet.report.page import Picture, Section, Table, write_page
from ssldet.verbs import Trained, finetune, pretrain
from ssldet.verbs.choosing import resolve

SCENES: dict[str, Any] = {
    "size": 64,
    "classes": ("circle", "square", "star"),
    "objects": (1, 2),
    "object_scale": (0.35, 0.6),
    "hues": True,
}
"""Generated images: few, large objects of three classes that differ in outline and hue."""

IMAGES = {"unlabelled": 3000, "labelled": 500, "held-out": 256}
"""Split -> number of images; the splits have different seeds."""

STEPS = {"pretrain": 600, "finetune": 160}
"""Stage -> optimiser steps, of 32 images each."""

SEEDS = 3
"""Fine-tuning runs per arm."""

Arm = list[Trained]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        folder: Folder of all files.
        report: The HTML page.
        patch_iou: Mean overlap of detections of patches in held-out images with their true boxes.
        patch_iou_constant: Mean overlap of the best constant box.
        pretrained: Results of each fine-tuning from pretrained weights.
        scratch: Results of each fine-tuning from fresh weights.
        seconds: Time of each stage.
    """

    folder: Path
    report: Path
    patch_iou: float
    patch_iou_constant: float
    pretrained: list[dict[str, Any]]
    scratch: list[dict[str, Any]]
    seconds: dict[str, float] = field(default_factory=dict)

    def measures(self, name: str) -> dict[str, list[float]]:
        """Return one result of every seed, for each arm.

        Args:
            name: Such as `AP` or `AP50`.
        """
        return {
            "pretrained": [float(results[name]) for results in self.pretrained],
            "scratch": [float(results[name]) for results in self.scratch],
        }

    def verdict(self) -> str:
        """Return a sentence on whether pretraining helped."""
        aps = self.measures("AP")
        better = sum(ours > theirs for ours, theirs in zip(aps["pretrained"], aps["scratch"], strict=True))
        words = "helped" if better == len(aps["scratch"]) else "did not help" if better == 0 else "helped in part"
        return (
            f"Pretraining {words}: AP {mean(aps['pretrained']):.3f} against {mean(aps['scratch']):.3f} from scratch, "
            f"better in {better} of {len(aps['scratch'])} seeds."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "patch_iou": self.patch_iou,
            "patch_iou_constant": self.patch_iou_constant,
            **{
                f"{name.lower()}_{arm}": values
                for name in ("AP", "AP50")
                for arm, values in self.measures(name).items()
            },
            "seconds": self.seconds,
            "verdict": self.verdict(),
            "folder": str(self.folder),
            "report": str(self.report),
        }

    def __str__(self) -> str:
        """Return the results as a table."""
        lines = [f"{'':12}{'AP':>24}{'AP50':>24}"]
        for arm in ("pretrained", "scratch"):
            cells = [" ".join(f"{value:.3f}" for value in self.measures(name)[arm]) for name in ("AP", "AP50")]
            lines.append(f"{arm:12}{cells[0]:>24}{cells[1]:>24}")
        lines.append(f"patches found: overlap {self.patch_iou:.3f}, best constant box {self.patch_iou_constant:.3f}")
        lines.append(self.verdict())
        lines.append(" ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items()))
        return "\n".join([*lines, str(self.report)])


def demo(out: str | Path | None = None, *, seed: int = 0) -> DemoResult:
    """Generate images, pretrain, fine-tune from pretrained and from fresh weights, evaluate, and write a report.

    Args:
        out: Folder to create; `None` takes the next free one in `runs/`.
        seed: The only source of randomness.

    Raises:
        ConfigError: The folder is in use.
    """
    folder = _free(out)
    # On tensors this small a second thread costs more in waiting than it computes.
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    with _timed(seconds, "generate"):
        data = _draw(folder / "data", seed)
    pretraining, finetuning = defaults.SHOWN
    with _timed(seconds, "pretrain"):
        first = override(resolve(pretraining), {"seed": seed, "budget.steps": STEPS["pretrain"]})
        pretrained = pretrain(data["unlabelled"], recipe=first, val=data["held-out"], out=folder / "pretrain")
    every = STEPS["finetune"] // 2
    second = override(resolve(finetuning), {"budget.steps": STEPS["finetune"], "evaluate_every": every})
    # The same architecture for both arms; a start from a run takes it in any case.
    second = replace(second, detector=pretrained.run.detector)
    arms: dict[str, Arm] = {}
    for name, start in (("pretrained", str(pretrained.path)), ("scratch", "scratch")):
        with _timed(seconds, name):
            arms[name] = _finetunings(second, start, data, folder / name, seed)
    result = DemoResult(
        folder=folder,
        report=folder / "report.html",
        patch_iou=float(pretrained.results["patch_iou"]),
        patch_iou_constant=float(pretrained.results["patch_iou_constant"]),
        pretrained=[run.results for run in arms["pretrained"]],
        scratch=[run.results for run in arms["scratch"]],
        seconds=seconds,
    )
    with _timed(seconds, "report"):
        _write(result, pretrained, arms)
    return result


def _free(out: str | Path | None) -> Path:
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: is in use; choose another --out, or leave it away for the next free one")
        return folder
    number = 1
    while (folder := Path("runs") / f"demo-{number}").exists():
        number += 1
    return folder


def _draw(folder: Path, seed: int) -> dict[str, str]:
    """Write the splits and return their specifications; the unlabelled one is the folder of its images."""
    write: Callable[..., Path] = find("ssldet.datasets", "shapes")
    specs = {}
    for number, (split, images) in enumerate(IMAGES.items()):
        annotations = write(folder / split, images=images, seed=seed * len(IMAGES) + number, **SCENES)
        pictures = annotations.parent / "images"
        specs[split] = str(pictures) if split == "unlabelled" else f"coco:{annotations}:{pictures}"
    return specs


def _finetunings(recipe: Run, start: str, data: dict[str, str], folder: Path, seed: int) -> Arm:
    runs = []
    for number in range(SEEDS):
        run = override(recipe, {"seed": seed + number})
        out = folder / f"seed-{seed + number}"
        runs.append(finetune(start, data["labelled"], val=data["held-out"], recipe=run, out=out))
    return runs


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 1)


def _write(result: DemoResult, pretrained: Trained, arms: dict[str, Arm]) -> None:
    write_page(
        result.report,
        "ssldet demo",
        _sections(result, pretrained, arms),
        status="finished",
        figures=[
            ("AP pretrained", f"{mean(result.measures('AP')['pretrained']):.3f}"),
            ("AP scratch", f"{mean(result.measures('AP')['scratch']):.3f}"),
            ("patch IoU", f"{result.patch_iou:.3f}"),
            ("constant box", f"{result.patch_iou_constant:.3f}"),
        ],
        lead="A tiny detector, pretrained on generated images without labels and then fine-tuned on a few with labels, "
        "next to the same detector from fresh weights with the same budget.",
    )


def _sections(result: DemoResult, pretrained: Trained, arms: dict[str, Arm]) -> list[Section]:
    table = Table(
        columns=("start", "seed", "AP", "AP50", "AP75"),
        rows=[
            (name, run.run.seed, run.results["AP"], run.results["AP50"], run.results["AP75"])
            for name, runs in arms.items()
            for run in runs
        ],
    )
    losses = {name: [_points(run, "train", "loss") for run in runs] for name, runs in arms.items()}
    aps = {name: [_points(run, "eval", "AP50") for run in runs] for name, runs in arms.items()}
    text = (
        "Patches of held-out images, cut at random, and where the detector thinks that they came from. The overlap is "
        f"{result.patch_iou:.3f}; the best box that says the same of every patch reaches "
        f"{result.patch_iou_constant:.3f}."
    )
    return [
        Section(heading="Fine-tuned on the same labels", text=result.verdict(), table=table),
        Section(
            heading="Learning curves",
            svg={
                "Loss": seed_curves(losses, "training loss", "loss"),
                "AP50": seed_curves(aps, "held-out images", "AP50"),
            },
        ),
        Section(heading="Patches asked for and found", text=text, pictures=_last_pictures([pretrained], "pretraining")),
        *(
            Section(heading=f"Detections, {name}", pictures=_last_pictures(runs[:1], name))
            for name, runs in arms.items()
        ),
        Section(heading="Time", table=Table(columns=("stage", "seconds"), rows=list(result.seconds.items()))),
    ]


def _points(run: Trained, kind: str, name: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), line[name]) for line in run.metrics if line["kind"] == kind and name in line]


def _last_pictures(runs: Sequence[Trained], what: str) -> list[Picture]:
    pictures = []
    for run in runs:
        drawn = sorted((run.path / "previews").glob("*.png"))
        pictures += [Picture(image=path, caption=f"{what}, {path.stem.replace('-', ' ')}") for path in drawn[-1:]]
    return pictures
