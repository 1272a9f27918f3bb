"""LazyConfig -> a trained model, as tools/lazyconfig_train_net.py does it, with the same parts of detectron2."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format

log = logging.getLogger(__name__)


def run(config: Path, overrides: Sequence[str], *, eval_only: bool = False) -> dict[str, Any]:
    """Train and evaluate, or only evaluate.

    Args:
        config: A LazyConfig file.
        overrides: `path=value`, in Hydra's grammar.
        eval_only: Evaluate `train.init_checkpoint`.

    Returns:
        The figures of the evaluators.
    """
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(config)), list(overrides))
    default_setup(cfg, SimpleNamespace(config_file=str(config), opts=list(overrides), eval_only=eval_only))
    model = instantiate(cfg.model).to(cfg.train.device)

    def evaluate() -> dict[str, Any]:
        loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
        figures: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
        print_csv_format(figures)
        return figures

    if eval_only:
        DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
        return evaluate()
    cfg.optimizer.params.model = model
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    measured = hooks.EvalHook(cfg.train.eval_period, evaluate)
    trainer.register_hooks([
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
        measured,
        hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period),
    ])  # fmt: skip
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)
    figures: dict[str, Any] = evaluate() if cfg.train.eval_period == 0 else {}
    return figures
