"""command line -> the verbs that train."""

from typing import Any

from ssldet.cli.options import (
    BatchSize,
    Data,
    Device,
    DryRun,
    Epochs,
    Json,
    LoggerNames,
    Out,
    Overrides,
    Quiet,
    Resume,
    Start,
    Steps,
    Which,
    choices,
    require_new,
)
from ssldet.cli.printing import prints, progress_shown


def pretrain(
    *images: str,
    start: str | None = None,
    weights: Which = "last",
    recipe: str | None = None,
    backbone: str | None = None,
    val: Data | None = None,
    out: Out = None,
    steps: Steps = None,
    epochs: Epochs = None,
    device: Device = None,
    batch_size: BatchSize = None,
    set_: Overrides = None,
    logger: LoggerNames = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    resume: Resume = None,
    json_: Json = False,
) -> None:
    """Pretrain a detection transformer on images without labels.

    Args:
        images: Folders, globs, file lists, tar:SHARDS, hf:PATH, or coco:/voc: data whose labels are then not read.
        start: A run folder or a weights file to go on from; default: the recipe's own detector.
        recipe: A name from 'ssldet list recipes', or the run.toml of an earlier run; by default one that suits this
            machine, the images and the labels, and that is said.
        backbone: A name from 'ssldet list backbones', in place of the recipe's or the start's.
        val: Images to measure the pretext task on; default: one in twenty of the images, held out; 'none': nothing.
    """
    from ssldet import verbs

    chosen: dict[str, Any] = {
        "start": start, "weights": weights, "recipe": recipe, "backbone": backbone, "val": val or (), "out": out,
        "steps": steps, "epochs": epochs,
        "overrides": choices(set_, device=device, data__batch_size=batch_size, loggers=logger),
    }  # fmt: skip
    with progress_shown(not quiet):
        if dry_run:
            require_new(resume)
            prints(verbs.plan_pretraining)(images, **chosen, json_=json_)
        else:
            prints(verbs.pretrain)(images, **chosen, resume=resume, json_=json_)


def finetune(
    start: Start | None = None,
    *,
    data: Data | None = None,
    val: Data | None = None,
    unlabelled: Data | None = None,
    weights: Which = "last",
    recipe: str | None = None,
    backbone: str | None = None,
    out: Out = None,
    steps: Steps = None,
    epochs: Epochs = None,
    device: Device = None,
    batch_size: BatchSize = None,
    set_: Overrides = None,
    logger: LoggerNames = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    resume: Resume = None,
    json_: Json = False,
) -> None:
    """Fine-tune a detector on labelled images.

    Args:
        data: coco:ANN.json:IMAGES, voc:ROOT:SPLIT or yolo:ROOT:SPLIT.
        val: The same, to evaluate on; default: nothing, or a share by --set data.held_out=0.1.
        unlabelled: Images without labels, for recipes of self_training.
        recipe: A name from 'ssldet list recipes', or the run.toml of an earlier run; by default one that suits this
            machine, the images and the labels, and that is said.
        backbone: A name from 'ssldet list backbones', in place of the start's; its transformer stays.
    """
    from ssldet import verbs

    chosen: dict[str, Any] = {
        "val": val or (), "unlabelled": unlabelled or (), "weights": weights, "recipe": recipe,
        "backbone": backbone, "out": out, "steps": steps, "epochs": epochs,
        "overrides": choices(set_, device=device, data__batch_size=batch_size, loggers=logger),
    }  # fmt: skip
    with progress_shown(not quiet):
        if dry_run:
            require_new(resume)
            prints(verbs.plan_finetuning)(start, data or (), **chosen, json_=json_)
        else:
            prints(verbs.finetune)(start, data or (), **chosen, resume=resume, json_=json_)
