"""`Setting` -> the smallest suite that uses every feature of the runner."""

from dataclasses import replace

from benchmarks.suite import Claim, Downstream, Setting, Suite
from benchmarks.suites import parts
from ssldet.recipe import override

STEPS = {"pretraining": 24, "fine-tuning": 16}
"""Far too few to learn anything: the suite tests the runner."""


def smoke(setting: Setting) -> Suite:
    """Test the runner: pretrain for a few steps, fine-tune with two seeds, compare."""
    steps: dict[str, object] = {"budget.steps": STEPS["pretraining"], "checkpoint.every_steps": 6, "data.batch_size": 8}
    methods = [parts.none(), parts.backbone_only("tiny"), parts.updetr("tiny"), parts.both("tiny")]
    methods = [replace(entry, stages=tuple(override(run, steps) for run in entry.stages)) for entry in methods]
    short = override(parts.tiny_detection(STEPS["fine-tuning"]), {"checkpoint.every_steps": 4, "data.batch_size": 8})
    downstream = Downstream(
        name="scenes",
        stages=(short,),
        train=parts.scenes("scenes-labelled", 40, 1, "coco"),
        val=parts.scenes("scenes-held-out", 24, 2, "coco"),
        unlabelled=parts.scenes("scenes", 60, 0),
        unlabelled_val=parts.scenes("scenes-held-out", 24, 2),
    )
    return Suite(
        name="smoke",
        question="Does the runner run?",
        methods=tuple(methods),
        backbones=parts.backbones("tiny"),
        detectors=parts.detectors("tiny"),
        downstreams=(downstream,),
        seeds=setting.numbers(2),
        threads=1,
        claims=(Claim(words="pretrained is at least as good", higher="updetr", lower="none"),),
    )
