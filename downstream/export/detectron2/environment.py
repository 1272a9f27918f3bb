"""Add our model to detectron2: `DETECTRON2_ENV_MODULE=downstream.export.detectron2.environment`.

detectron2 calls `setup_environment` when it is imported, so its own `tools/train_net.py` runs unchanged. The additions
only affect our model; loaders and optimisers of all other models stay as they are.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from ssldet.errors import ConfigError
from ssldet.verbs.choosing import resolve

log = logging.getLogger(__name__)

KEYS: dict[str, Any] = {
    "RECIPE": "detection/r50",
    "SET": [],
    "FRACTION": 1.0,
    "BACKBONE": "resnet50",
    "FORMAT": "",
    "TASK": "",
    "DETECTOR": "",
    "CLASSES": [],
    "CATEGORY_IDS": [],
}
"""Keys of `MODEL.SSLDET`: recipe, changes of its fields (`path=value`), share of the training images, backbone for
detectron2's own heads; the last five are stated in the configuration beside an exported file."""


def setup_environment() -> None:
    """Add our configuration keys, model, backbones, data names and evaluators; a second call has no effect."""
    from detectron2.config import CfgNode, defaults

    template = defaults._C  # every configuration is a copy of this one
    if "SSLDET" in template.MODEL:
        return
    template.MODEL.SSLDET = CfgNode(KEYS)
    template.SOLVER.BACKBONE_MULTIPLIER = 0.1
    from downstream.export.detectron2 import backbone, evaluation, model  # noqa: F401  # they register themselves

    evaluation.stand_in_for_panopticapi()
    _extend_trainer()


def _extend_trainer() -> None:
    """Have detectron2's default trainer use our loaders and optimiser for our model."""
    from detectron2.engine import DefaultTrainer

    for name, own in (
        ("build_train_loader", _train_loader),
        ("build_test_loader", _test_loader),
        ("build_optimizer", _optimizer),
    ):
        setattr(DefaultTrainer, name, classmethod(_for_our_model(getattr(DefaultTrainer, name).__func__, own)))
    build_model = DefaultTrainer.build_model.__func__

    def build_with_registered_data(cls: Any, cfg: Any) -> Any:
        _register_all(cfg)
        return build_model(cls, cfg)

    DefaultTrainer.build_model = classmethod(build_with_registered_data)


def _for_our_model(stock: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def build(cls: Any, cfg: Any, *arguments: Any) -> Any:
        return own(cfg, *arguments) if cfg.MODEL.META_ARCHITECTURE == "SSLDet" else stock(cls, cfg, *arguments)

    return build


def _register_all(cfg: Any) -> None:
    """Register data sets that are named `coco:…`, `voc:…` or `panoptic:…`, for any model."""
    from downstream.export.detectron2.catalogue import register

    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        register(name)


def _train_loader(cfg: Any) -> Any:
    from downstream.export.detectron2 import lazy

    return lazy.train_loader(
        recipe=cfg.MODEL.SSLDET.RECIPE,
        train=cfg.DATASETS.TRAIN,
        set=cfg.MODEL.SSLDET.SET,
        fraction=cfg.MODEL.SSLDET.FRACTION,
        seed=max(0, cfg.SEED),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _test_loader(cfg: Any, name: str) -> Any:
    from downstream.export.detectron2 import lazy

    return lazy.test_loader(
        recipe=cfg.MODEL.SSLDET.RECIPE,
        train=cfg.DATASETS.TRAIN or (name,),
        test=name,
        set=cfg.MODEL.SSLDET.SET,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _optimizer(cfg: Any, model: Any) -> Any:
    """Return our optimiser as `SOLVER` describes it, and log where that differs from the recipe.

    Raises:
        ConfigError: `SOLVER` or the recipe wants an optimisation that our model does not have in detectron2.
    """
    from downstream.export.detectron2.schedule import differences, inexpressible
    from downstream.export.detectron2.solver import build_optimizer

    run, clipping = resolve(cfg.MODEL.SSLDET.RECIPE), cfg.SOLVER.CLIP_GRADIENTS
    wrong = [f"MODEL.SSLDET.RECIPE {cfg.MODEL.SSLDET.RECIPE}: {line}" for line in inexpressible(run)]
    if clipping.ENABLED and (clipping.CLIP_TYPE, clipping.NORM_TYPE) != ("full_model", 2.0):
        wrong.append(
            f"SOLVER.CLIP_GRADIENTS: {clipping.CLIP_TYPE} with NORM_TYPE {clipping.NORM_TYPE}, but our model clips the "
            "norm of the whole gradient; set CLIP_TYPE full_model and NORM_TYPE 2.0"
        )
    if wrong:
        raise ConfigError(wrong)
    if other := differences(run, cfg.SOLVER, cfg.SOLVER.MAX_ITER):
        log.warning("SOLVER decides where the recipe %s differs: %s", cfg.MODEL.SSLDET.RECIPE, "; ".join(other))
    return build_optimizer(
        model,
        lr=cfg.SOLVER.BASE_LR,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        max_norm=clipping.CLIP_VALUE if clipping.ENABLED else 0.0,
    )
