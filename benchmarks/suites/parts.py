"""Building blocks of suites, by scale: networks, pretraining methods, baselines and downstream tasks."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.suite import Data, Downstream, GeneratedScenes, ImagesOnDisk, Method, Scale, Setting
from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import override
from ssldet.registry import find, names

RECIPES = {"full": "random_query_patch/paper", "tiny": "random_query_patch/tiny"}
"""Scale -> recipe of UP-DETR. The tiny recipe matches within own groups, because with matching over all queries it
learns nothing at that scale, as `ours/matching` measures."""

TITLES = {"full": "UP-DETR", "tiny": "UP-DETR, own groups"}
"""Scale -> what that recipe is called in reports."""

BACKBONE_TASKS = ("swav", "moco_v2")
"""Pretext tasks that train a backbone alone, the preferred one first."""

TINY_PRETRAINING: Mapping[str, object] = {"budget.steps": 500, "checkpoint.every_steps": 100, "optim.lr_backbone": 5e-4}
"""Changes of the recipe for tiny pretraining: fewer steps, and fine-tuning's rate for a backbone that is trained."""

SHORT, LONG = 80, 160
"""Steps of tiny fine-tuning, instead of the paper's 150 and 300 epochs."""

ON_DISK = 800
"""Steps of tiny fine-tuning on real images, which are harder than generated ones."""


def recipe(name: str) -> Run:
    """Return a registered recipe."""
    run: Run = find("ssldet.recipes", name)()
    return run


def detectors(scale: Scale) -> tuple[DetectorConfig, ...]:
    """Return the detector of a scale: UP-DETR's at full scale."""
    return (recipe("detection/r50" if scale == "full" else "detection/tiny").detector,)


def backbones(scale: Scale) -> tuple[BackboneConfig, ...]:
    """Return the backbone of a scale with fresh weights; methods may set published weights."""
    detector = detectors(scale)[0]
    backbone = backbone_of(detector)
    return () if backbone is None else (replace(backbone, weights=None),)


def none() -> Method:
    """Return the baseline of no pretraining."""
    return Method(name="none", title="no pretraining: fresh weights everywhere", role="none")


def backbone_only(scale: Scale) -> Method:
    """Return the baseline of a pretrained backbone with a fresh transformer, the paper's DETR."""
    if scale == "full":
        return Method(name="backbone", title="SwAV's published backbone alone", role="backbone", weights="swav")
    stage, missing = backbone_stage()
    title = "a backbone pretrained on the same images alone"
    return Method(name="backbone", title=title, stages=stage, role="backbone", missing=missing)


def backbone_stage() -> tuple[tuple[Run, ...], str]:
    """Return a run that trains a tiny backbone alone, or no run and the reason."""
    recipes = names("ssldet.recipes")
    for task in BACKBONE_TASKS:
        if f"{task}/tiny" in recipes:
            return (recipe(f"{task}/tiny"),), ""
    return (), f"no pretext task for backbones is installed (looked for: {', '.join(BACKBONE_TASKS)})"


def updetr(
    scale: Scale, name: str = "updetr", title: str = "", changes: Mapping[str, object] = MappingProxyType({})
) -> Method:
    """Return random query patch detection: on SwAV's backbone at full scale, on a fresh one at tiny scale.

    Args:
        scale: Scale of the suite.
        name: Name of the method.
        title: Description in a few words; empty names the method as the recipe matches.
        changes: Dotted fields of the recipe and their values.
    """
    tiny = TINY_PRETRAINING if scale == "tiny" else {}
    run = override(recipe(RECIPES[scale]), {**tiny, **changes})
    weights = "swav" if scale == "full" else None
    return Method(name=name, title=title or TITLES[scale], stages=(run,), weights=weights)


def both(scale: Scale) -> Method:
    """Return backbone pretraining followed by random query patch detection on that backbone, at tiny scale."""
    stage, missing = backbone_stage()
    whole = updetr(scale)
    title = f"a backbone pretrained on the same images, then {TITLES[scale]}"
    return replace(whole, name="both", title=title, stages=(*stage, *whole.stages), missing=missing)


def scenes(name: str, images: int, seed: int, form: str = "images") -> GeneratedScenes:
    """Return a set of generated scenes."""
    return GeneratedScenes(name=name, images=images, seed=seed, form=form)  # type: ignore[arg-type]  # one of the field's values


def detection_on_scenes(
    name: str, steps: int, labelled: int = 300, metric: str = "AP", row: Mapping[str, str] | None = None
) -> Downstream:
    """Return detection on generated scenes.

    Args:
        name: Name of the task.
        steps: Steps of fine-tuning.
        labelled: Number of training images.
        metric: Name of the metric that is compared.
        row: Method -> row of a published table, as in `Downstream.row`.
    """
    return Downstream(
        name=name,
        stages=(tiny_detection(steps),),
        train=scenes("scenes-labelled", labelled, 1, "coco"),
        val=scenes("scenes-held-out", 150, 2, "coco"),
        unlabelled=scenes("scenes", 3000, 0),
        unlabelled_val=scenes("scenes-held-out", 150, 2),
        metric=metric,
        row=row or {},
    )


def tiny_detection(steps: int, name: str = "detection/tiny") -> Run:
    """Return a tiny detection recipe with a number of steps and four evaluations."""
    changes: dict[str, object] = {
        "budget.steps": steps,
        "evaluate_every": max(1, steps // 4),
        "checkpoint.every_steps": 80,
    }
    return override(recipe(name), changes)


def detection_on_disk(setting: Setting, metric: str = "AP") -> tuple[Downstream, ...]:
    """Return detection on images on disk, if `photos`, `cards` and `cards_val` were given.

    Args:
        setting: The choices, with the data sets.
        metric: Name of the metric that is compared.
    """
    if not {"photos", "cards", "cards_val"} & setting.places.keys():
        return ()
    photos, cards, held_out = setting.given("photos", "cards", "cards_val")
    stages = (tiny_detection(ON_DISK),)
    return (Downstream(name="cards", stages=stages, train=cards, val=held_out, unlabelled=photos, metric=metric),)


def short_detection(
    setting: Setting, metric: str = "AP", row: Mapping[str, str] | None = None
) -> tuple[Downstream, ...]:
    """Return the tiny downstream tasks: a short schedule on generated scenes and, if given, images on disk.

    Args:
        setting: The choices, with the data sets.
        metric: Name of the metric that is compared.
        row: Method -> row of a published table, as in `Downstream.row`.
    """
    return (detection_on_scenes("short", SHORT, metric=metric, row=row), *detection_on_disk(setting, metric))


def full_detection(
    name: str, data: tuple[Data, Data, ImagesOnDisk], epochs: float, row: Mapping[str, str], metric: str = "AP"
) -> Downstream:
    """Return detection at full scale.

    Args:
        name: Name of the task.
        data: Images to fine-tune on, to evaluate on, and to pretrain on.
        epochs: Epochs of fine-tuning.
        row: Method -> row of a published table, as in `Downstream.row`.
        metric: Name of the metric that is compared.
    """
    run = override(recipe("detection/r50"), {"budget.epochs": epochs, "evaluate_every": 0})
    train, val, unlabelled = data
    return Downstream(name=name, stages=(run,), train=train, val=val, unlabelled=unlabelled, metric=metric, row=row)
