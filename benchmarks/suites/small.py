"""`Setting` -> what pretraining brings the recipes named small, whose backbone knows photographs, on your images."""

from dataclasses import dataclass, replace

from benchmarks.suite import Claim, Downstream, Method, Setting, Suite
from benchmarks.suites import parts
from benchmarks.suites.ours import JITTER, jitter
from pretext.random_query_patch import RandomQueryPatch
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.recipe import override
from ssldet.registry import find, names

CLAIMS = (
    Claim(words="pretraining with own groups pays", higher="own_group", lower="backbone"),
    Claim(words="pretraining with all queries pays", higher="global", lower="backbone"),
    Claim(words="own groups are at least as good as all queries", higher="own_group", lower="global"),
    Claim(words="a supervised start pays more", higher="supervised", lower="own_group"),
)

BASELINES = ("none", "backbone", "frozen", "supervised")
"""Arms without pretext task, which every suite here has."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What the tiny scale leaves of the recipes; the full scale takes them as they are.

    Attributes:
        pretraining: Steps of pretraining.
        finetuning: Steps of fine-tuning.
        side: Side of the images in pixels; `None` keeps the recipe's.
    """

    pretraining: int
    finetuning: int
    side: int | None = None

    def of(self, recipe: str, setting: Setting, steps: int) -> Run:
        """Return a recipe, at the tiny scale with a number of steps and images of the smaller side.

        Args:
            recipe: Name of the recipe.
            setting: The choices, with the scale.
            steps: Steps at the tiny scale; they are evaluated four times.
        """
        # One loader process each, because runs share cores; few sizes of canvas, because accelerators plan for each.
        changes = {"data.workers": 1, "data.canvas_multiple": 32, "evaluate_every": max(1, steps // 4)}
        run = override(parts.recipe(recipe), changes)
        if setting.scale == "full":
            return run
        smaller = {} if self.side is None else _smaller(run, self.side)
        return override(run, smaller | {"budget.steps": steps})


USUAL = Cut(pretraining=600, finetuning=800)
QUICK = Cut(pretraining=400, finetuning=300, side=160)
"""For suites of many arms."""
QUICKEST = replace(QUICK, pretraining=300)
"""For suites in which every arm has a pretraining of its own; arms with the same recipe share their runs."""
ON_TOP = 200
"""Steps at the tiny scale of what comes after fine-tuning."""


def small(setting: Setting) -> Suite:
    """The recipes named small, on your photographs: `images`, `train`, `val` and, for a supervised start, `labelled`.

    Fine-tuning is repeated on `more_train` and `more_val`, where given, from the same pretraining. Each run has
    the budget of its recipe at full scale, and a third of that or less at the tiny one. The baseline without any
    pretraining keeps the frozen first stages of the recipes, here with fresh weights.
    """
    whole = _suite(setting, USUAL)
    if not {"more_train", "more_val"} & setting.places.keys():
        return whole
    train, val = setting.given("more_train", "more_val")
    (own,) = whole.downstreams
    return replace(whole, downstreams=(own, replace(own, name="more", train=train, val=val)))


def _suite(setting: Setting, cut: Cut) -> Suite:
    images, train, val = setting.given("images", "train", "val")
    run = cut.of("detection/small", setting, cut.finetuning)
    backbone = backbone_of(run.detector)
    assert backbone is not None
    downstream = Downstream(
        name="own", stages=(run,), train=train, val=val, unlabelled=images, unlabelled_val=val, metric="AP50"
    )
    return Suite(
        name="ours/small",
        question="Does pretraining the transformer pay on these photographs, once the backbone is good?",
        scale=setting.scale,
        methods=_methods(setting, cut, run, backbone.weights),
        backbones=(replace(backbone, weights=None),),
        detectors=(run.detector,),
        downstreams=(downstream,),
        fractions=(1.0, 0.1),
        seeds=setting.numbers(3),
        pretrainings=3,
        threads=1,
        claims=CLAIMS,
    )


def few_labels(setting: Setting) -> Suite:
    """The same starts with 1, 2, 5, 10 % of the labels, with ten objects of each class, and self-training on top."""
    whole = _suite(setting, QUICKEST)
    (own,) = whole.downstreams
    run = own.stages[0]
    return replace(
        whole,
        name="ours/few_labels",
        question="What pays with few labels: pretraining, a detector trained on others, self-training, or several?",
        methods=tuple(method for method in whole.methods if method.name != "global"),
        downstreams=(
            own,
            replace(own, name="ten_shots", stages=(override(run, {"data.shots": 10}),), fractions=(1.0,)),
            _with_images(own, setting),
        ),
        fractions=(0.01, 0.02, 0.05, 0.1),
        claims=tuple(claim for claim in CLAIMS if "global" not in (claim.higher, claim.lower)),
    )


def backbone_swap(setting: Setting) -> Suite:
    """A detector taught with another backbone, behind the suite's: as it is, and after re-alignment without labels.

    The other backbone is a small one of fresh weights at the tiny scale, and ResNet-18 of torchvision at the full one.
    """
    whole = _suite(setting, QUICK)
    (own,) = whole.downstreams
    tiny = {"name": "tiny", "weights": None, "frozen_stages": 0, "frozen_norm": False}
    other = tiny if setting.scale == "tiny" else {"name": "resnet18", "weights": "imagenet"}
    taught = override(own.stages[0], {f"detector.backbone.{name}": value for name, value in other.items()})
    strong = next(method.weights for method in whole.methods if method.name == "backbone")
    own_group = QUICK.of("random_query_patch/small", setting, QUICK.pretraining)
    distillation = QUICK.of("distillation/small", setting, 200)

    def swapped(name: str, title: str, *stages: Run) -> Method:
        return Method(name=name, title=title, stages=stages, weights=strong, taught=taught)

    return replace(
        whole,
        name="ours/backbone_swap",
        question="What does the transformer of a detector keep behind another backbone, and what brings it back?",
        methods=(
            *(method for method in whole.methods if method.name in BASELINES),
            swapped("exchanged", "a transformer that was taught behind another backbone, as it is"),
            swapped("own_group", "the same, re-aligned by UP-DETR, own groups", own_group),
            swapped("distillation", "the same, re-aligned by distillation", distillation),
        ),
        # As few steps as re-alignment may save.
        downstreams=(replace(own, stages=(QUICK.of("detection/small", setting, 200),)),),
        fractions=(1.0,),
        claims=(
            Claim(words="a taught transformer is worth keeping", higher="exchanged", lower="backbone"),
            Claim(words="patches re-align it", higher="own_group", lower="exchanged"),
            Claim(words="distillation re-aligns it", higher="distillation", lower="exchanged"),
        ),
    )


def matching(setting: Setting) -> Suite:
    """Matching in own groups or over all queries x strength of jitter, on a backbone that knows photographs."""
    whole = _suite(setting, QUICK)
    kept = [method for method in whole.methods if method.name in BASELINES]
    (own_group,) = (method for method in whole.methods if method.name == "own_group")
    methods = [
        replace(
            own_group,
            name=f"{kind}/{name}",
            title=f"matched within {words}, jitter {name}",
            stages=(override(own_group.stages[0], {"task.matching": kind} | jitter(strength)),),
        )
        for name, strength in JITTER.items()
        for kind, words in (("own_group", "own groups"), ("global", "all queries"))
    ]
    return replace(
        whole,
        name="ours/matching_small",
        question="Does matching within own groups carry over to detection, once the backbone is good?",
        methods=(*kept, *methods),
        fractions=(1.0,),
        claims=tuple(
            Claim(
                words=f"own groups are at least as good as all queries, jitter {name}",
                higher=f"own_group/{name}",
                lower=f"global/{name}",
            )
            for name in JITTER
        ),
    )


def orderings(setting: Setting) -> Suite:
    """The paper's orderings on a backbone that knows photographs: patches, frozen or not, reconstruction, mask.

    Query shuffle is not among them: a detector with two stages has no learned queries.
    """
    whole = _suite(setting, QUICKEST)
    (ten,) = (method for method in whole.methods if method.name == "own_group")
    learns: dict[str, object] = {"task.freeze_backbone": False, "optim.lr_backbone": 1e-4}
    without: dict[str, object] = {"task.reconstruction": False}
    changed: dict[str, tuple[str, dict[str, object]]] = {
        "one_patch": ("one patch per image", {"task.num_patches": 1}),
        "free": ("all queries attend to all", {"task.grouped_attention": False}),
        "without": ("backbone frozen, without reconstruction", without),
        "learns": ("backbone learns, with reconstruction", learns),
        "learns_without": ("backbone learns, without reconstruction", learns | without),
    }
    return replace(
        whole,
        name="ours/orderings",
        question="Do the paper's orderings hold once the backbone is good?",
        methods=(
            *(method for method in whole.methods if method.name in BASELINES),
            replace(ten, title="ten patches, backbone frozen, with reconstruction"),
            *(
                replace(ten, name=name, title=title, stages=(override(ten.stages[0], changes),))
                for name, (title, changes) in changed.items()
            ),
        ),
        fractions=(0.1,),
        claims=(
            Claim(words="pretrained is at least as good as a fresh transformer", higher="own_group", lower="backbone"),
            Claim(words="ten patches are at least as good as one", higher="own_group", lower="one_patch"),
            Claim(words="frozen is at least as good, with reconstruction", higher="own_group", lower="learns"),
            Claim(words="frozen is at least as good, without it", higher="without", lower="learns_without"),
            Claim(words="no gain from reconstruction once frozen", higher="own_group", lower="without", kind="no gain"),
            Claim(words="no gain from masking attention", higher="own_group", lower="free", kind="no gain"),
        ),
    )


def methods(setting: Setting) -> Suite:
    """Every pretext task that has a recipe named small, with few labels, and self-training on top."""
    whole = _suite(setting, QUICKEST)
    (own,) = whole.downstreams
    kept = [method for method in whole.methods if method.name in BASELINES]
    pretrained = []
    for name in names("ssldet.tasks"):
        if find("ssldet.tasks", name).verb == "pretrain" and f"{name}/small" in names("ssldet.recipes"):
            stage = QUICKEST.of(f"{name}/small", setting, QUICKEST.pretraining)
            pretrained.append(Method(name=name, title=name, stages=(stage,), weights=kept[0].weights))
    return replace(
        whole,
        name="zoo/small",
        question="Which pretext task pays on these photographs, with a good backbone, and does self-training add?",
        methods=(*kept, *pretrained),
        downstreams=(
            own,
            replace(own, name="ten_shots", stages=(override(own.stages[0], {"data.shots": 10}),), fractions=(1.0,)),
            _with_images(own, setting),
            # As many more steps on the labels alone, without which a gain of self-training may be one of training.
            replace(own, name="longer", stages=(*own.stages, QUICK.of("detection/small", setting, ON_TOP))),
        ),
        fractions=(0.1,),
        claims=(),
    )


def _with_images(own: Downstream, setting: Setting) -> Downstream:
    """Return the same fine-tuning with self-training after it, so that the teacher knows the labels."""
    with_images = QUICK.of("self_training/small", setting, ON_TOP)
    return replace(own, name="self_training", stages=(*own.stages, override(with_images, {"task.burn_in": 0.0})))


def _smaller(run: Run, side: int) -> dict[str, object]:
    """Return the changes that make images smaller, with the names that the run's task has for their sizes."""
    if isinstance(run.task, RandomQueryPatch):
        sides = (side * 3 // 4, side * 7 // 8, side)
        return {"task.image_sides": sides, "task.longest_side": side * 5 // 4, "task.eval_side": side}
    if not hasattr(run.task, "scales"):
        return {}  # crops of a size of its own
    return {"task.scales": (side,), "task.max_size": side, "task.eval_scale": side}


def _methods(setting: Setting, cut: Cut, run: Run, strong: str | None) -> tuple[Method, ...]:
    own_group = cut.of("random_query_patch/small", setting, cut.pretraining)
    all_queries = override(own_group, {"task.matching": "global"})
    return (
        Method(name="backbone", title="a backbone that knows photographs", role="backbone", weights=strong),
        Method(name="own_group", title="UP-DETR, own groups", stages=(own_group,), weights=strong),
        Method(name="global", title="UP-DETR, all queries", stages=(all_queries,), weights=strong),
        _supervised_start(setting, cut, run, strong),
        Method(
            name="frozen",
            title="that backbone, frozen",
            weights=strong,
            finetuning={"task.freeze_backbone": True},
        ),
        parts.none(),
    )


def _supervised_start(setting: Setting, cut: Cut, run: Run, weights: str | None) -> Method:
    """Return the arm of a detector that was trained on other labels before."""
    title = "a detector trained on other labels"
    if "labelled" not in setting.places:
        return Method(name="supervised", title=title, missing="it needs --data labelled=SPECIFICATION")
    labelled = setting.given("labelled")[0]
    stage = override(run, {"budget.steps": cut.pretraining if setting.scale == "tiny" else 1500, "evaluate_every": 0})
    return Method(name="supervised", title=title, stages=(stage,), weights=weights, labelled=labelled)
