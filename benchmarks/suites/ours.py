"""`Setting` -> our own comparisons: scopes of matching, all pretext tasks, and pretraining on your own data."""

from dataclasses import replace

from benchmarks.networks import in_suite
from benchmarks.suite import Claim, Downstream, Method, Scale, Setting, Suite
from benchmarks.suites import parts
from ssldet.recipe import override
from ssldet.registry import find, names

JITTER = {"none": 0.0, "half": 0.5, "full": 1.0}
"""Name -> strength relative to UP-DETR's jitter of patches."""

TINY_STEPS = 500
"""Most steps of a method in `zoo/methods` at the tiny scale, as many as UP-DETR has there."""


def matching(setting: Setting) -> Suite:
    """Matching in own groups or over all queries x strength of jitter. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    methods = [parts.none(), parts.backbone_only(scale)]
    strengths = [name for name in JITTER if scale == "full" or name != "half"]
    for name in strengths:
        for kind, words in (("own_group", "own groups"), ("global", "all queries")):
            methods.append(
                parts.updetr(
                    scale,
                    f"{kind}/{name}",
                    f"matched within {words}, jitter {name}",
                    {"task.matching": kind} | jitter(JITTER[name]),
                )
            )
    if scale == "full":
        imagenet, train, val = setting.given("imagenet", "voc_train", "voc_test")
        downstreams: tuple[Downstream, ...] = (parts.full_detection("short", (train, val, imagenet), 150, {}),)
    else:
        downstreams = parts.short_detection(setting)
    claims = [
        Claim(
            words=f"own groups are at least as good as all queries, jitter {name}",
            higher=f"own_group/{name}",
            lower=f"global/{name}",
        )
        for name in strengths
    ]
    question = "Does matching within own groups carry over to detection?"
    return _suite("ours/matching", question, setting, methods, downstreams, tuple(claims), 3)


def methods(setting: Setting) -> Suite:
    """Every registered pretext task against the baselines. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    recipe = "tiny" if scale == "tiny" else "r50"
    compared = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    if scale == "tiny":
        compared.append(parts.both(scale))
    for name in names("ssldet.tasks"):
        # A task that one of the methods above uses is not added again.
        used = {type(stage.task) for method in compared for stage in method.stages}
        task = find("ssldet.tasks", name)
        if task in used or task.verb != "pretrain":
            continue
        compared.append(_method(name, f"{name}/{recipe}", scale))
    if scale == "full":
        imagenet, train, val = setting.given("imagenet", "voc_train", "voc_test")
        downstream = parts.full_detection("voc-150", (train, val, imagenet), 150, {})
    else:
        downstream = parts.detection_on_scenes("short", parts.SHORT)
    suite = _suite("zoo/methods", "Which pretext task pays?", setting, compared, (downstream,), (), 3)
    return replace(suite, pretrainings=3)


def _method(task: str, recipe: str, scale: Scale) -> Method:
    """Return a pretext task by its own recipe, on fresh weights, or why the suite can't have it."""
    if recipe not in names("ssldet.recipes"):
        return Method(name=task, title=task, missing=f"it has no recipe {recipe}")
    stage = parts.recipe(recipe)
    if scale == "tiny" and (stage.budget.steps or 0) > TINY_STEPS:
        stage = override(stage, {"budget.steps": TINY_STEPS})
    network = in_suite(stage, override(parts.detectors(scale)[0], {"backbone.weights": "none"})).detector
    if wrong := stage.task.problems_with(network):
        return Method(name=task, title=task, missing=f"it does not suit this suite's detector: {'; '.join(wrong)}")
    return Method(name=task, title=task, stages=(stage,))


def own_data(setting: Setting) -> Suite:
    """Your data: `images` without labels, `train` and `val` with labels; tiny gives a first impression only."""
    scale = setting.scale
    images, train, val = setting.given("images", "train", "val")
    if scale == "tiny":
        run = parts.tiny_detection(parts.LONG)
    else:
        run = override(parts.recipe("detection/r50"), {"budget.epochs": 150.0})
    downstream = Downstream(name="own", stages=(run,), train=train, val=val, unlabelled=images)
    methods = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    claim = Claim(words="pretraining on these images pays", higher="updetr", lower="backbone")
    return _suite("own_data", "Does pretraining pay on these images?", setting, methods, (downstream,), (claim,), 3)


def jitter(strength: float) -> dict[str, object]:
    """Return UP-DETR's jitter of patches, multiplied by a strength."""
    usual = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2, "blur": 0.5}
    chances: dict[str, object] = {"task.jitter.probability": 0.8 if strength else 0.0}
    if not strength:
        usual = {"grey": 0.0, "blur": 0.0}
    return chances | {f"task.jitter.{name}": strength * value for name, value in usual.items()}


def _suite(
    name: str,
    question: str,
    setting: Setting,
    methods: list[Method],
    downstreams: tuple[Downstream, ...],
    claims: tuple[Claim, ...],
    seeds: int,
) -> Suite:
    scale = setting.scale
    return Suite(
        name=name,
        question=question,
        scale=scale,
        methods=tuple(methods),
        backbones=parts.backbones(scale),
        detectors=parts.detectors(scale),
        downstreams=downstreams,
        fractions=(0.1, 0.3, 1.0) if name == "own_data" else (1.0,),
        seeds=setting.numbers(seeds),
        threads=None if scale == "full" else 1,
        claims=claims,
    )
