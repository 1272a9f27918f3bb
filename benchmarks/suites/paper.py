"""`Setting` -> the tables and figures of UP-DETR (Dai et al. 2021), at its scale or with the same axes in minutes.

The docstring of each function lists the data sets that `--data` must name at full scale; learning rates are those of
the recipes, the same for every method. At full scale there is one seed, as in the paper; `--seeds` takes more.
"""

from benchmarks.suite import Claim, Data, Downstream, Method, Setting, Suite
from benchmarks.suites import parts
from ssldet.recipe import override

VOC_EPOCHS = (150.0, 300.0)


def table1(setting: Setting) -> Suite:
    """Pascal VOC: a short and a long schedule. Full: `imagenet`, `voc_train` (07+12 trainval), `voc_test` (07)."""
    scale = setting.scale
    methods = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    rows = ({"backbone": "DETR/150", "updetr": "UP-DETR/150"}, {"backbone": "DETR/300", "updetr": "UP-DETR/300"})
    if scale == "full":
        downstreams = [
            _voc(setting, f"voc-{epochs:g}", epochs, row) for epochs, row in zip(VOC_EPOCHS, rows, strict=True)
        ]
        base = "backbone"
    else:
        methods.append(parts.both(scale))
        base = "none"
        downstreams = [
            parts.detection_on_scenes("short", parts.SHORT, row=rows[0]),
            parts.detection_on_scenes("long", parts.LONG, row=rows[1]),
            *parts.detection_on_disk(setting),
        ]
    claims = [Claim(words="pretrained is at least as good as scratch", higher="updetr", lower=base)]
    return _suite("table1", "Does pretraining help on a small data set?", setting, methods, downstreams, claims)


def table2(setting: Setting) -> Suite:
    """COCO. Full: `imagenet`, `coco_train`, `coco_val`."""
    scale = setting.scale
    methods = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    if scale == "full":
        methods.append(Method(name="supervised", title="a supervised backbone alone", weights="imagenet"))
        imagenet, train, val = setting.given("imagenet", "coco_train", "coco_val")
        downstreams = [
            parts.full_detection(
                f"coco-{epochs}",
                (train, val, imagenet),
                epochs,
                {
                    "supervised": f"DETR supervised CNN/{epochs}",
                    "backbone": f"DETR SwAV CNN/{epochs}",
                    "updetr": f"UP-DETR/{epochs}",
                },
            )
            for epochs in (150, 300)
        ]
        claim = Claim(words="UP-DETR beats SwAV's backbone", higher="updetr", lower="backbone")
    else:
        downstreams = [
            parts.detection_on_scenes("many-short", parts.SHORT, labelled=1000),
            parts.detection_on_scenes("many-long", parts.LONG, labelled=1000),
        ]
        claim = Claim(words="UP-DETR beats no pretraining", higher="updetr", lower="none")
    return _suite("table2", "Does pretraining help on a large data set?", setting, methods, downstreams, [claim])


def table3(setting: Setting) -> Suite:
    """One-shot detection on VOC. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    methods = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    if scale == "full":
        imagenet, train, val = setting.given("imagenet", "voc_train", "voc_test")
        downstream = Downstream(
            name="one-shot",
            stages=(parts.recipe("one_shot/voc"),),
            train=train,
            val=val,
            unlabelled=imagenet,
            metric="AP50_unseen",
            row={"backbone": "DETR", "updetr": "UP-DETR"},
        )
    else:
        changes: dict[str, object] = {"budget.steps": parts.LONG, "task.unseen": ("star",)}
        downstream = Downstream(
            name="one-shot",
            stages=(override(parts.recipe("one_shot/tiny"), changes),),
            train=parts.scenes("scenes-labelled", 300, 1, "coco"),
            val=parts.scenes("scenes-held-out", 150, 2, "coco"),
            unlabelled=parts.scenes("scenes", 3000, 0),
            unlabelled_val=parts.scenes("scenes-held-out", 150, 2),
            metric="AP50_unseen",
            row={"backbone": "DETR", "updetr": "UP-DETR"},
        )
    base = "backbone" if scale == "full" else "none"
    claim = Claim(words="pretraining helps one-shot detection", higher="updetr", lower=base)
    return _suite("table3", "Does pretraining help to find unseen classes?", setting, methods, [downstream], [claim])


def table4(setting: Setting) -> Suite:
    """COCO panoptic. Full: `imagenet`, `panoptic_train`, `panoptic_val`."""
    scale = setting.scale
    methods = [parts.none(), parts.backbone_only(scale), parts.updetr(scale)]
    train: Data
    val: Data
    unlabelled: Data
    if scale == "full":
        unlabelled, train, val = setting.given("imagenet", "panoptic_train", "panoptic_val")
        stages = (parts.recipe("panoptic/r50-boxes"), parts.recipe("panoptic/r50"))
    else:
        unlabelled = parts.scenes("scenes", 3000, 0)
        train, val = (
            parts.scenes("stuff-labelled", 300, 3, "panoptic"),
            parts.scenes("stuff-held-out", 60, 4, "panoptic"),
        )
        steps: dict[str, object] = {"budget.steps": parts.LONG}
        stages = (
            override(parts.recipe("panoptic/tiny-boxes"), steps),
            override(parts.recipe("panoptic/tiny"), steps),
        )
    downstream = Downstream(
        name="panoptic",
        stages=stages,
        train=train,
        val=val,
        unlabelled=unlabelled,
        metric="PQ",
        row={"backbone": "DETR", "updetr": "UP-DETR"},
    )
    base = "backbone" if scale == "full" else "none"
    claim = Claim(words="pretraining helps panoptic quality", higher="updetr", lower=base)
    return _suite("table4", "Does pretraining help segmentation?", setting, methods, [downstream], [claim])


def table5(setting: Setting) -> Suite:
    """Frozen backbone x feature reconstruction. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    cases = {"a": (False, False), "b": (True, False), "c": (False, True), "d": (True, True)}
    methods = [parts.none(), parts.backbone_only(scale)]
    for case, (frozen, reconstruction) in cases.items():
        words = f"backbone {'frozen' if frozen else 'learns'}, {'with' if reconstruction else 'without'} reconstruction"
        # The paper's target was not detached, so it can collapse in case (c); if frozen, it makes no difference.
        method = parts.updetr(
            scale,
            f"({case})",
            words,
            {"task.freeze_backbone": frozen, "task.reconstruction": reconstruction, "task.detach_target": frozen}
            | _ablation(setting),
        )
        methods.append(method)
    rows = {"backbone": "DETR scratch"} | {f"({case})": f"({case})" for case in cases}
    downstreams = _short(setting, rows, "AP50")
    claims = [
        Claim(words="frozen is at least as good, without reconstruction", higher="(b)", lower="(a)"),
        Claim(words="frozen is at least as good, with reconstruction", higher="(d)", lower="(c)"),
        Claim(
            words="no gain from reconstruction once frozen",
            higher="(d)",
            lower="(b)",
            kind="no gain",
        ),
        Claim(words="frozen pretraining is at least as good as none", higher="(b)", lower="none"),
    ]
    question = "Must the backbone be frozen, and does reconstruction help?"
    return _suite("table5", question, setting, methods, downstreams, claims)


def table6(setting: Setting) -> Suite:
    """One patch or ten. Full: `imagenet`, `voc_train`, `voc_test`."""
    scale = setting.scale
    single = parts.updetr(scale, "M=1", "one patch per image", {"task.num_patches": 1} | _ablation(setting))
    multi = parts.updetr(scale, "M=10", "ten patches per image", _ablation(setting))
    methods = [parts.none(), parts.backbone_only(scale), single, multi]
    downstreams = _short(setting, {"backbone": "DETR", "M=1": "1", "M=10": "10"})
    claims = [
        Claim(words="ten patches are at least as good as one", higher="M=10", lower="M=1"),
        Claim(words="one patch is at least as good as no pretraining", higher="M=1", lower="none"),
    ]
    return _suite("table6", "One patch per image or ten?", setting, methods, downstreams, claims)


def fig6(setting: Setting) -> Suite:
    """Attention between queries of different patches, masked or not: pretext loss. Full: as table 6."""
    scale = setting.scale
    masked = parts.updetr(scale, "masked", "queries of other patches are not attended to", _ablation(setting))
    free = parts.updetr(
        scale, "free", "all queries attend to all", {"task.grouped_attention": False} | _ablation(setting)
    )
    methods = [parts.none(), parts.backbone_only(scale), masked, free]
    claim = Claim(words="no difference downstream", higher="masked", lower="free", kind="no gain")
    question = "What does the attention mask change?"
    return _suite("fig6", question, setting, methods, _short(setting, {}), [claim])


def fig7(setting: Setting) -> Suite:
    """Query shuffle. Full: as table 6."""
    scale = setting.scale
    plain = parts.updetr(scale, "plain", "queries keep their patches", {"task.shuffle": False} | _ablation(setting))
    mixed = parts.updetr(
        scale, "shuffled", "queries in a new order each step", {"task.shuffle": True} | _ablation(setting)
    )
    methods = [parts.none(), parts.backbone_only(scale), plain, mixed]
    claim = Claim(words="shuffling brings no gain", higher="shuffled", lower="plain", kind="no gain")
    return _suite(
        "fig7",
        "What does query shuffle change?",
        setting,
        methods,
        _short(setting, {"plain": "plain", "shuffled": "shuffled"}),
        [claim],
    )


def _ablation(setting: Setting) -> dict[str, object]:
    """Return the schedule with which the paper pretrained its ablations: 15 epochs with a drop at 10."""
    return {"budget.epochs": 15.0, "optim.drops": (2 / 3,)} if setting.scale == "full" else {}


def _voc(setting: Setting, name: str, epochs: float, row: dict[str, str], metric: str = "AP") -> Downstream:
    imagenet, train, val = setting.given("imagenet", "voc_train", "voc_test")
    return parts.full_detection(name, (train, val, imagenet), epochs, row, metric)


def _short(setting: Setting, row: dict[str, str], metric: str = "AP") -> list[Downstream]:
    if setting.scale == "full":
        return [_voc(setting, "short", VOC_EPOCHS[0], row, metric)]
    return list(parts.short_detection(setting, metric, row))


def _suite(
    table: str,
    question: str,
    setting: Setting,
    methods: list[Method],
    downstreams: list[Downstream],
    claims: list[Claim],
) -> Suite:
    scale = setting.scale
    return Suite(
        name=f"paper/{table}",
        question=question,
        scale=scale,
        methods=tuple(methods),
        backbones=parts.backbones(scale),
        detectors=parts.detectors(scale),
        downstreams=tuple(downstreams),
        seeds=setting.numbers(1 if scale == "full" else 3),
        threads=None if scale == "full" else 1,
        claims=tuple(claims),
        tables=(table,),
    )
