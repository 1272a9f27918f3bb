"""`Setting` -> what pretraining brings the recipes named small, whose backbone knows photographs, on your images."""

from dataclasses import replace

from benchmarks.suite import Claim, Downstream, Method, Setting, Suite
from benchmarks.suites import parts
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.recipe import override

CLAIMS = (
    Claim(words="pretraining with own groups pays", higher="own_group", lower="backbone"),
    Claim(words="pretraining with all queries pays", higher="global", lower="backbone"),
    Claim(words="own groups are at least as good as all queries", higher="own_group", lower="global"),
    Claim(words="a supervised start pays more", higher="supervised", lower="own_group"),
)


def small(setting: Setting) -> Suite:
    """The recipes named small, on your photographs: `images`, `train`, `val` and, for a supervised start, `labelled`.

    Each run has the budget of its recipe at full scale, and a third of that or less at the tiny one. The baseline
    without any pretraining keeps the frozen first stages of the recipes, here with fresh weights.
    """
    images, train, val = setting.given("images", "train", "val")
    run = _budgeted("detection/small", setting, steps=800, evaluate_every=200)
    backbone = backbone_of(run.detector)
    assert backbone is not None
    downstream = Downstream(
        name="own", stages=(run,), train=train, val=val, unlabelled=images, unlabelled_val=val, metric="AP50"
    )
    return Suite(
        name="ours/small",
        question="Does pretraining the transformer pay on these photographs, once the backbone is good?",
        scale=setting.scale,
        methods=_methods(setting, run, backbone.weights),
        backbones=(replace(backbone, weights=None),),
        detectors=(run.detector,),
        downstreams=(downstream,),
        fractions=(1.0, 0.1),
        seeds=setting.numbers(3),
        pretrainings=3,
        threads=1,
        claims=CLAIMS,
    )


def _budgeted(recipe: str, setting: Setting, *, steps: int, evaluate_every: int) -> Run:
    """Return a recipe, at the tiny scale with this budget."""
    # One loader process each, because runs share the cores; few sizes of canvas, because accelerators plan for each.
    changes: dict[str, object] = {"data.workers": 1, "data.canvas_multiple": 32, "evaluate_every": evaluate_every}
    return override(parts.recipe(recipe), changes | ({"budget.steps": steps} if setting.scale == "tiny" else {}))


def _methods(setting: Setting, run: Run, strong: str | None) -> tuple[Method, ...]:
    own_group = _budgeted("random_query_patch/small", setting, steps=600, evaluate_every=300)
    all_queries = override(own_group, {"task.matching": "global"})
    return (
        Method(name="backbone", title="a backbone that knows photographs", role="backbone", weights=strong),
        Method(name="own_group", title="UP-DETR, own groups", stages=(own_group,), weights=strong),
        Method(name="global", title="UP-DETR, all queries", stages=(all_queries,), weights=strong),
        _supervised_start(setting, run, strong),
        Method(
            name="frozen",
            title="that backbone, frozen",
            weights=strong,
            finetuning={"task.freeze_backbone": True},
        ),
        parts.none(),
    )


def _supervised_start(setting: Setting, run: Run, weights: str | None) -> Method:
    """Return the arm of a detector that was trained on other labels before."""
    title = "a detector trained on other labels"
    if "labelled" not in setting.places:
        return Method(name="supervised", title=title, missing="it needs --data labelled=SPECIFICATION")
    labelled = setting.given("labelled")[0]
    stage = override(run, {"budget.steps": 600 if setting.scale == "tiny" else 1500, "evaluate_every": 0})
    return Method(name="supervised", title=title, stages=(stage,), weights=weights, labelled=labelled)
