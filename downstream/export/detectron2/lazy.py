"""recipe, data -> the entries of a LazyConfig for `tools/lazyconfig_train_net.py`, all of which can be overridden."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluators, PascalVOCDetectionEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from downstream.export.detectron2.catalogue import dataset, register
from downstream.export.detectron2.evaluation import OneShotEvaluator, stand_in_for_panopticapi
from downstream.export.detectron2.mapper import Mapper
from downstream.export.detectron2.model import SSLDet, planned
from downstream.export.detectron2.solver import build_optimizer
from downstream.one_shot import OneShot
from ssldet.data.sources import chosen_places
from ssldet.verbs.choosing import resolve


def configuration(
    recipe: str, *, train: Sequence[str], test: str, images: int, fraction: float = 1.0, device: str = "cuda"
) -> dict[str, Any]:
    """Return `dataloader`, `optimizer`, `lr_multiplier`, `train` and `model` of a LazyConfig.

    On the command line, `data.train=[coco:ANN.json:IMAGES] data.test=…` choose other data, `data.set=[task.flip=0]`
    changes recipe fields, and `train.init_checkpoint` names the weights to start from, which decide the architecture.

    Args:
        recipe: Name of a recipe, whose task, augmentation, rates and schedule are used.
        train: Labelled images, or names in detectron2's catalogue; all with the same classes.
        test: Labelled images to evaluate on.
        images: Number of training images, from which the number of steps follows.
        fraction: Share of the training images that is used.
        device: Device to compute on.
    """
    run = resolve(recipe)
    steps = run.budget.total_steps(max(1, round(images * fraction)), run.data.batch_size)
    data = {"recipe": recipe, "train": list(train), "test": test, "fraction": fraction, "seed": 0, "set": []}
    same = {"recipe": "${data.recipe}", "train": "${data.train}", "set": "${data.set}"}
    drops = list(run.optim.drops) if run.optim.schedule == "step" else []
    return {
        "data": data,
        "model": LazyCall(build_model)(weights="${train.init_checkpoint}", output="${train.output_dir}", **same),
        "dataloader": {
            "train": LazyCall(train_loader)(
                fraction="${data.fraction}", seed="${data.seed}",
                batch_size=run.data.batch_size, workers=run.data.workers, **same,
            ),
            "test": LazyCall(test_loader)(test="${data.test}", workers=run.data.workers, **same),
            "evaluator": LazyCall(evaluator)(test="${data.test}", output="${train.output_dir}", **same),
        },
        "optimizer": LazyCall(optimizer_of)(
            params={"model": None},
            lr=run.optim.lr,
            backbone_multiplier=run.optim.lr_backbone / run.optim.lr,
            weight_decay=run.optim.weight_decay,
            max_norm=run.optim.clip,
        ),
        "lr_multiplier": LazyCall(WarmupParamScheduler)(
            scheduler=LazyCall(MultiStepParamScheduler)(
                values=[run.optim.drop_factor**n for n in range(len(drops) + 1)],
                milestones=[*(round(drop * steps) for drop in drops), steps],
            ),
            warmup_factor=0.001,
            warmup_length=min(1.0, run.optim.warmup_steps / steps),
        ),
        "train": {
            "output_dir": "./output", "init_checkpoint": "", "max_iter": steps, "amp": {"enabled": False},
            "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
            "checkpointer": {"period": run.checkpoint.every_steps, "max_to_keep": 2},
            "eval_period": max(1, steps // 10), "log_period": run.log_every, "device": device,
        },
    }  # fmt: skip


def build_model(
    *, recipe: str, train: Sequence[str], set: Sequence[str] = (), weights: str = "", output: str = ""
) -> SSLDet:
    """Return the model for a training set."""
    plan, classes, stuff = planned(recipe, train, set, weights)
    model: SSLDet = SSLDet(blueprint=plan, classes=classes, stuff=stuff, output=output)
    return model


def train_loader(
    *,
    recipe: str,
    train: Sequence[str],
    set: Sequence[str],
    fraction: float,
    seed: int,
    batch_size: int,
    workers: int,
) -> Any:
    """Return detectron2's endless loader with DETR's augmentation."""
    task = planned(recipe, train, set)[0].task
    rows = [row for spec in train for row in dataset(spec, task, training=True)]
    rows = [rows[place] for place in chosen_places(len(rows), fraction, seed)]
    mapper = Mapper(task, training=True, seed=seed)
    return build_detection_train_loader(rows, mapper=mapper, total_batch_size=batch_size, num_workers=workers)


def test_loader(*, recipe: str, train: Sequence[str], test: str, set: Sequence[str], workers: int) -> Any:
    """Return detectron2's loader of single images."""
    task = planned(recipe, train, set)[0].task
    rows = dataset(test, task, training=False)
    return build_detection_test_loader(rows, mapper=Mapper(task, training=False), num_workers=workers)


def evaluator(*, recipe: str, train: Sequence[str], test: str, set: Sequence[str], output: str) -> Any:
    """Return detectron2's own evaluators for a data set, or ours for one-shot pairs."""
    task = planned(recipe, train, set)[0].task
    if isinstance(task, OneShot):
        return OneShotEvaluator(test, task)
    name = register(test)
    kind = MetadataCatalog.get(name).evaluator_type
    if kind == "pascal_voc":
        DatasetCatalog.get(name)
        return PascalVOCDetectionEvaluator(name)
    boxes = COCOEvaluator(name, output_dir=output)
    if kind != "coco_panoptic_seg":
        return boxes
    stand_in_for_panopticapi()
    return DatasetEvaluators([boxes, COCOPanopticEvaluator(name, output)])


def optimizer_of(*, params: Any, **options: float) -> Any:
    """Return AdamW for the model, which detectron2's tool sets as `params["model"]`."""
    return build_optimizer(params["model"], **options)
