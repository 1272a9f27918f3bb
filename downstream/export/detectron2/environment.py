"""nothing -> a detectron2 that knows our model: `DETECTRON2_ENV_MODULE=downstream.export.detectron2.environment`.

detectron2 calls `setup_environment` when it is imported, so its own `tools/train_net.py` runs unchanged. What is added
concerns our model only; every other model is built, fed and optimised as before.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

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
"""Keys of `MODEL.SSLDET`: recipe, fields of it to change (`path=value`), share of the training images, backbone under
detectron2's own heads; the last five are what the configuration beside an exported file states."""


def setup_environment() -> None:
    """Add our configuration keys, model, backbones, data names and evaluators; done twice, nothing happens."""
    from detectron2.config import CfgNode, defaults

    known = defaults._C  # the one place that every configuration is copied from
    if "SSLDET" in known.MODEL:
        return
    known.MODEL.SSLDET = CfgNode(KEYS)
    known.SOLVER.BACKBONE_MULTIPLIER = 0.1
    from downstream.export.detectron2 import backbone, evaluation, model  # noqa: F401  # they register themselves

    evaluation.stand_in_for_panopticapi()
    _teach_trainer()


def _teach_trainer() -> None:
    """Have detectron2's default trainer feed and optimise our model as a DETR needs it."""
    from detectron2.engine import DefaultTrainer

    for name, own in (
        ("build_train_loader", _train_loader),
        ("build_test_loader", _test_loader),
        ("build_optimizer", _optimizer),
    ):
        setattr(DefaultTrainer, name, classmethod(_for_ours(getattr(DefaultTrainer, name).__func__, own)))
    build_model = DefaultTrainer.build_model.__func__

    def build_with_known_data(cls: Any, cfg: Any) -> Any:
        _register_all(cfg)
        return build_model(cls, cfg)

    DefaultTrainer.build_model = classmethod(build_with_known_data)


def _for_ours(stock: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def build(cls: Any, cfg: Any, *arguments: Any) -> Any:
        return own(cfg, *arguments) if cfg.MODEL.META_ARCHITECTURE == "SSLDet" else stock(cls, cfg, *arguments)

    return build


def _register_all(cfg: Any) -> None:
    """Enter what is written as `coco:…`, `voc:…` or `panoptic:…` among the names of datasets, for any model."""
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
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _test_loader(cfg: Any, name: str) -> Any:
    from downstream.export.detectron2 import lazy

    return lazy.test_loader(
        recipe=cfg.MODEL.SSLDET.RECIPE,
        train=cfg.DATASETS.TRAIN or (name,),
        test=name,
        set=cfg.MODEL.SSLDET.SET,
        workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _optimizer(cfg: Any, model: Any) -> Any:
    from downstream.export.detectron2.solver import build_optimizer

    return build_optimizer(
        model,
        lr=cfg.SOLVER.BASE_LR,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        max_norm=cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE,
    )
