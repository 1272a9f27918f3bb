"""recipe, data -> the entries of a LazyConfig for `tools/lazyconfig_train_net.py`, all of which can be overridden."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluators, PascalVOCDetectionEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from downstream.export.detectron2.catalogue import dataset, register
from downstream.export.detectron2.evaluation import OneShotEvaluator, stand_in_for_panopticapi
from downstream.export.detectron2.mapper import Mapper
from downstream.export.detectron2.model import SSLDet, planned
from downstream.export.detectron2.schedule import inexpressible, milestones, warm_up
from downstream.export.detectron2.solver import build_optimizer
from downstream.one_shot import OneShot
from ssldet.data.sources import chosen_places
from ssldet.engine.run import OptimConfig
from ssldet.errors import ConfigError
from ssldet.verbs.choosing import resolve


def configuration(
    recipe: str, *, train: Sequence[str], test: str, images: int, fraction: float = 1.0, device: str = "cuda"
) -> dict[str, Any]:
    """Return `dataloader`, `optimizer`, `lr_multiplier`, `train` and `model` of a LazyConfig.

    On the command line, `data.train=[coco:ANN.json:IMAGES] data.test=…` choose other data, `data.set=[task.flip=0]`
    changes fields of task and detector, and `train.init_checkpoint` names the weights to start from, which decide the
    architecture. All other entries are detectron2's own, under the names of its own configurations.

    Args:
        recipe: Name of a recipe, whose task, augmentation, rates and schedule are used.
        train: Labelled images, or names in detectron2's catalogue; all with the same classes.
        test: Labelled images to evaluate on.
        images: Number of training images, from which the number of steps follows.
        fraction: Share of the training images that is used.
        device: Device to compute on.

    Raises:
        ConfigError: detectron2's trainers do not have what the recipe chooses; the message lists every field.
    """
    run = resolve(recipe)
    if wrong := inexpressible(run):
        raise ConfigError([f"{recipe}: {line}" for line in wrong])
    steps = run.budget.total_steps(max(1, round(images * fraction)), run.data.batch_size)
    data = {"recipe": recipe, "train": list(train), "test": test, "fraction": fraction, "seed": 0, "set": []}
    same = {"recipe": "${data.recipe}", "train": "${data.train}", "set": "${data.set}"}
    return {
        "data": data,
        "model": LazyCall(build_model)(
            weights="${train.init_checkpoint}", output="${train.output_dir}", written_for=recipe, **same
        ),
        "dataloader": {
            "train": LazyCall(train_loader)(
                fraction="${data.fraction}", seed="${data.seed}",
                total_batch_size=run.data.batch_size, num_workers=run.data.workers, **same,
            ),
            "test": LazyCall(test_loader)(test="${data.test}", num_workers=run.data.workers, **same),
            "evaluator": LazyCall(evaluator)(test="${data.test}", output_dir="${train.output_dir}", **same),
        },
        "optimizer": LazyCall(optimizer_of)(
            params={"model": None},
            lr=run.optim.lr,
            backbone_multiplier=run.optim.lr_backbone / run.optim.lr,
            weight_decay=run.optim.weight_decay,
            max_norm=run.optim.clip,
        ),
        "lr_multiplier": multiplier(run.optim, steps),
        "train": {
            "output_dir": "./output", "init_checkpoint": "", "max_iter": steps, "amp": {"enabled": False},
            "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
            "checkpointer": {"period": run.checkpoint.every_steps, "max_to_keep": 2},
            "eval_period": max(1, steps // 10), "log_period": run.log_every, "device": device,
        },
    }  # fmt: skip


def multiplier(optim: OptimConfig, steps: int) -> Any:
    """Return the schedule of the learning rate in detectron2's terms.

    It equals ours in every step, except that a cosine after a warm-up is one step ahead, because detectron2's warm-up
    ends one step later than ours.

    Args:
        optim: The optimisation.
        steps: Length of the run.
    """
    factor, length = warm_up(optim)
    drops = milestones(optim, steps)
    if optim.schedule == "cosine":
        scheduler = LazyCall(CosineParamScheduler)(start_value=1.0, end_value=0.0)
    else:
        values = [optim.drop_factor**number for number in range(len(drops) + 1)]
        scheduler = LazyCall(MultiStepParamScheduler)(values=values, milestones=[*drops, steps])
    return LazyCall(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_factor=factor,
        warmup_length=min(1.0, length / steps),
        warmup_method="linear",
        rescale_interval=optim.schedule == "cosine",
    )


def build_model(
    *,
    recipe: str,
    train: Sequence[str],
    set: Sequence[str] = (),
    weights: str = "",
    output: str = "",
    written_for: str = "",
) -> SSLDet:
    """Return the model for a training set.

    Args:
        recipe: Name of the recipe.
        train: Labelled images.
        set: Recipe fields, `path=value`.
        weights: File from which the model starts.
        output: Folder of the run.
        written_for: Recipe whose optimisation the configuration states; an empty string accepts any.

    Raises:
        ConfigError: The recipe was changed, but not the optimisation of the configuration.
    """
    if written_for not in ("", recipe):
        raise ConfigError(
            f"data.recipe: {recipe}, but optimizer, lr_multiplier and dataloader of this configuration are those of "
            f"{written_for}; write a file that calls downstream.export.detectron2.lazy.configuration({recipe!r}, …)"
        )
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
    **options: Any,
) -> Any:
    """Return detectron2's endless loader with DETR's augmentation.

    Args:
        recipe: Name of a recipe.
        train: Labelled images.
        set: Recipe fields, `path=value`.
        fraction: Share of the images that is used.
        seed: Seed of that choice and of augmentation.
        options: Arguments of detectron2's `build_detection_train_loader`, such as `total_batch_size` and `num_workers`.
    """
    task = planned(recipe, train, set)[0].task
    rows = [row for spec in train for row in dataset(spec, task, training=True)]
    rows = [rows[place] for place in chosen_places(len(rows), fraction, seed)]
    mapper = Mapper(task, training=True, seed=seed)
    return build_detection_train_loader(rows, mapper=mapper, **options)


def test_loader(*, recipe: str, train: Sequence[str], test: str, set: Sequence[str], **options: Any) -> Any:
    """Return detectron2's loader for evaluation.

    Args:
        recipe: Name of a recipe.
        train: Labelled images for training, whose classes the model has.
        test: Labelled images to evaluate on.
        set: Recipe fields, `path=value`.
        options: Arguments of detectron2's `build_detection_test_loader`, such as `num_workers` and `batch_size`.
    """
    task = planned(recipe, train, set)[0].task
    rows = dataset(test, task, training=False)
    return build_detection_test_loader(rows, mapper=Mapper(task, training=False), **options)


def evaluator(*, recipe: str, train: Sequence[str], test: str, set: Sequence[str], output_dir: str) -> Any:
    """Return detectron2's own evaluators for a data set, or ours for one-shot pairs."""
    task = planned(recipe, train, set)[0].task
    if isinstance(task, OneShot):
        return OneShotEvaluator(test, task)
    name = register(test)
    kind = MetadataCatalog.get(name).evaluator_type
    if kind == "pascal_voc":
        DatasetCatalog.get(name)
        return PascalVOCDetectionEvaluator(name)
    boxes = COCOEvaluator(name, output_dir=output_dir)
    if kind != "coco_panoptic_seg":
        return boxes
    stand_in_for_panopticapi()
    return DatasetEvaluators([boxes, COCOPanopticEvaluator(name, output_dir)])


def optimizer_of(*, params: Any, **options: Any) -> Any:
    """Return AdamW for the model, which detectron2's tool sets as `params["model"]`."""
    return build_optimizer(params["model"], **options)
