"""`Setting` -> all detectors side by side, each with its own recipes, from fresh weights and pretrained."""

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.suite import Claim, Method, Setting, Suite
from benchmarks.suites import parts
from ssldet.engine.run import Run
from ssldet.recipe import override

CONTENDERS: Mapping[str, tuple[str, str]] = {
    "detr": ("random_query_patch/tiny", "detection/tiny"),
    "deformable_detr": ("random_query_patch/deformable-tiny", "detection/deformable-tiny"),
    "fp_detr": ("fp_detr_contrast/tiny", "detection/fp_detr-tiny"),
}
"""Registered name of a detector -> its recipes of pretraining and of fine-tuning, at tiny scale."""

PRETRAINING, FINETUNING = 400, 120
"""Steps at tiny scale."""

FULL: Mapping[str, tuple[str, str]] = {
    "detr": ("random_query_patch/r50", "detection/voc-150"),
    "deformable_detr": ("random_query_patch/deformable-r50", "detection/deformable-voc"),
    "fp_detr": ("fp_detr_contrast/lite", "detection/fp_detr-lite"),
}
"""The same at full scale, with the schedules of each detector's authors."""


def detectors(setting: Setting) -> Suite:
    """Every detector with its own recipes, from scratch and pretrained. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    if scale == "full":
        pretraining, finetuning = _runs(FULL)
        imagenet, train, val = setting.given("imagenet", "voc_train", "voc_test")
        downstream = parts.full_detection("voc", (train, val, imagenet), 150, {})
        backbone, weights = parts.backbone_only(scale), "swav"
    else:
        pretraining, finetuning = _runs(CONTENDERS)
        steps = {**parts.TINY_PRETRAINING, "budget.steps": PRETRAINING}
        pretraining = {name: override(run, steps) for name, run in pretraining.items()}
        finetuning = {name: parts.tiny_detection(FINETUNING, recipe) for name, (_, recipe) in CONTENDERS.items()}
        downstream = parts.detection_on_scenes("scenes", FINETUNING)
        missing = "left out at this scale; paper/table1 measures it"
        backbone, weights = Method(name="backbone", title="a backbone alone", role="backbone", missing=missing), None
    title = "the whole detector pretrained: on random query patches, FP-DETR by contrasting crops"
    pretrained = Method(name="pretrained", title=title, stages_of=_one_stage_each(pretraining), weights=weights)
    return Suite(
        name="zoo/detectors",
        question="Which detector learns fastest, and which gains from pretraining?",
        scale=scale,
        methods=(parts.none(), backbone, pretrained),
        backbones=parts.backbones(scale),
        detectors=tuple(run.detector for run in finetuning.values()),
        downstreams=(replace(downstream, stages_of=_one_stage_each(finetuning)),),
        seeds=setting.numbers(3),
        threads=None if scale == "full" else 1,
        claims=(Claim(words="pretrained is at least as good as scratch", higher="pretrained", lower="none"),),
    )


def _runs(recipes: Mapping[str, tuple[str, str]]) -> tuple[dict[str, Run], dict[str, Run]]:
    """Return the pretraining and the fine-tuning run of each detector."""
    first = {name: parts.recipe(pretraining) for name, (pretraining, _) in recipes.items()}
    return first, {name: parts.recipe(finetuning) for name, (_, finetuning) in recipes.items()}


def _one_stage_each(runs: Mapping[str, Run]) -> dict[str, tuple[Run, ...]]:
    return {name: (run,) for name, run in runs.items()}
