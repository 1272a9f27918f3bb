"""a recipe's optimisation -> the same in detectron2's terms, or the fields for which detectron2 has no terms.

This file does not import detectron2.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ssldet.engine.run import OptimConfig, Run

REMEDY = "train with ssldet finetune, or choose a recipe with"
INSIDE = ("task", "detector")
"""Parts of a recipe that have the same effect in detectron2."""
OUTSIDE = {
    "optim": "optimizer and lr_multiplier of a LazyConfig, SOLVER of a YAML file",
    "budget": "train.max_iter of a LazyConfig, SOLVER.MAX_ITER of a YAML file",
    "data": "data and dataloader of a LazyConfig, DATASETS, DATALOADER and SOLVER.IMS_PER_BATCH of a YAML file",
    "checkpoint": "train.checkpointer of a LazyConfig, SOLVER.CHECKPOINT_PERIOD of a YAML file",
}
"""Part of a recipe that detectron2 decides -> where it is set there."""
ELSEWHERE = "train of a LazyConfig, the top level of a YAML file"


def inexpressible(run: Run) -> list[str]:
    """Return the choices of a recipe that detectron2's trainers do not have, one line each, by field name.

    Args:
        run: The recipe.
    """
    optim, default = run.optim, OptimConfig()
    reasons = {
        "optim.optimizer": (optim.optimizer, default.optimizer, "our model has AdamW only in detectron2"),
        "optim.accumulate": (optim.accumulate, default.accumulate, "its trainers compute each batch at once"),
        "optim.ema": (optim.ema, default.ema, "its trainers do not average weights"),
        "precision": (
            # `auto` leaves the choice to whoever trains.
            "32" if run.precision == "auto" else run.precision,
            "32",
            "its mixed precision is float16, by train.amp.enabled or SOLVER.AMP.ENABLED",
        ),
    }
    return [
        f"{name}: {chosen}, but {reason}; {REMEDY} {name}={only}"
        for name, (chosen, only, reason) in reasons.items()
        if chosen != only
    ]


def misplaced(fields: Iterable[str]) -> list[str]:
    """Return one line for each recipe field that has no effect in detectron2, where it is set elsewhere.

    Args:
        fields: Dotted fields, such as `optim.schedule`.
    """
    return [
        f"{field}: has no effect on detectron2's trainers; set {OUTSIDE.get(part, ELSEWHERE)}"
        for field in fields
        if (part := field.partition(".")[0]) not in INSIDE
    ]


def warm_up(optim: OptimConfig) -> tuple[float, int]:
    """Return factor and length of detectron2's linear warm-up that has the same rates as ours in each step.

    Ours reaches the peak in its last step, detectron2's in the step after it; ours begins with one part, not with zero.

    Args:
        optim: The optimisation.
    """
    return 1 / max(1, optim.warmup_steps), max(0, optim.warmup_steps - 1)


def milestones(optim: OptimConfig, steps: int) -> list[int]:
    """Return the steps at which the rate drops; none for other schedules than `step`.

    Args:
        optim: The optimisation.
        steps: Length of the run.
    """
    return [round(drop * steps) for drop in optim.drops] if optim.schedule == "step" else []


def solver(run: Run, steps: int) -> dict[str, Any]:
    """Return the keys of `SOLVER` for a recipe, for a YAML file.

    Args:
        run: The recipe.
        steps: Length of the run.
    """
    optim = run.optim
    factor, length = warm_up(optim)
    rates = {"WARMUP_FACTOR": factor, "WARMUP_METHOD": "linear"} if length else {}
    cosine = {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.0, "RESCALE_INTERVAL": True}
    drops = {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": tuple(milestones(optim, steps))}
    clipped = {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": optim.clip}
    return {
        "BASE_LR": optim.lr,
        "BACKBONE_MULTIPLIER": optim.lr_backbone / optim.lr,
        "WEIGHT_DECAY": optim.weight_decay,
        "IMS_PER_BATCH": run.data.batch_size,
        "MAX_ITER": steps,
        "WARMUP_ITERS": length,
        "CLIP_GRADIENTS": clipped if optim.clip else {"ENABLED": False},
        **rates,
        **(cosine if optim.schedule == "cosine" else drops),
        **({"GAMMA": optim.drop_factor} if optim.schedule == "step" else {}),
    }


def differences(run: Run, given: Mapping[str, Any], steps: int) -> list[str]:
    """Return one line for each key of `SOLVER` about rates and gradients that differs from the recipe.

    Args:
        run: The recipe.
        given: `SOLVER`, which decides.
        steps: Length of the run.
    """
    return [
        f"SOLVER.{name} is {given[name]}, in the recipe {value}"
        for name, value in solver(run, steps).items()
        if name not in ("MAX_ITER", "STEPS", "IMS_PER_BATCH") and not _same(value, given[name])
    ]


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Mapping):
        return all(_same(value, theirs[name]) for name, value in ours.items())
    return bool(abs(ours - theirs) <= 1e-9) if isinstance(ours, float) else bool(ours == theirs)
