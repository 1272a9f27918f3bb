"""RUN | FILE -> numbers and pictures: what one does with a trained model."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from PIL import Image

from ssldet import chance
from ssldet.data.collate import collate
from ssldet.data.files import nothing_readable, unreadable
from ssldet.data.images import ImageRules
from ssldet.data.signed import save_signed
from ssldet.data.sources import Unlabelled, open_source
from ssldet.disk import Disk, write_whole
from ssldet.engine.sources import evaluation_batches_of, prepared
from ssldet.engine.symptoms import BoxVariance, blindness, recipe_that_knows_photographs
from ssldet.errors import ConfigError, DataError, UnreadableError
from ssldet.hints import Within, hints_of
from ssldet.importing.base import Opened
from ssldet.patches import PatchObjective
from ssldet.recipe import check, override
from ssldet.registry import find, name_of, names
from ssldet.report.bands import require_bands, seen
from ssldet.report.pictures import draw_detections, draw_segmentation
from ssldet.source import Source
from ssldet.types import Detections, Pixels, Sample, Skipped
from ssldet.verbs.asking import asking
from ssldet.verbs.bounds import COUNT, SHARE, require_within
from ssldet.verbs.file_names import FileNames
from ssldet.verbs.keeping import require_pictures_replaceable, require_results_or_nothing
from ssldet.verbs.opening import Step, Which, open_answering
from ssldet.verbs.results import PanopticResults, results_file, rows_of, save_cut_out
from ssldet.verbs.translating import translation

log = logging.getLogger(__name__)

RULES = ImageRules()
"""Which images are usable, as in a run that does not say otherwise."""
LARGE = ImageRules(max_pixels=178_000_000)
"""The same where images are looked at in parts; Pillow decodes no larger ones."""


def evaluate(
    start: str | Path | None,
    data: str | Sequence[str],
    *,
    weights: Which = "last",
    predictions: str | Path | None = None,
    save_predictions: str | Path | None = None,
    metric: str | None = None,
    iou: float | None = None,
    max_dets: int | None = None,
    batch_size: int = 1,
    workers: int = 2,
    tiles: int | None = None,
    tile_overlap: float | None = None,
    overrides: Mapping[str, object] | None = None,
    step: Step | None = None,
) -> dict[str, Any]:
    """Measure a model, or a file of predictions without any model.

    Args:
        start: A run folder or a weights file; `None` where `predictions` is given.
        data: `coco:ANN.json:IMAGES`, `voc:ROOT:SPLIT`, `yolo:ROOT:SPLIT` or `panoptic:ANN.json:PNGS:IMAGES`; plain
            images for a pretext task.
        weights: Which weights of a run folder: `last` or `best`.
        predictions: A results file to score: COCO's, or COCO's panoptic one with its PNGs.
        save_predictions: Where to write the detections as a COCO results file; of a panoptic model, as COCO's panoptic
            one, with its PNGs in a folder beside it.
        metric: `coco` or `voc`; `None` takes the task's, and for predictions that of the data's form.
        iou: Overlap from which an object counts as found; for VOC's figures of predictions alone.
        max_dets: Detections per image and class that count in COCO's figures; `None` takes the task's.
        batch_size: Images read at a time; those of one size are looked at together. Results do not depend on it.
        workers: Loader processes.
        tiles: Side in pixels of the tiles into which larger images are cut; `None` takes the task's choice.
        tile_overlap: Least share of a tile that it has in common with the next one; `None` takes the task's, 0.2.
        overrides: Dotted fields of the task, such as `task.eval_scale`, and their values.
        step: Take a checkpoint of the run, which need not have finished.

    Returns:
        The metrics by name; `per_class` holds a number for each class. Where images can't be read, `unreadable` names
        each with the reason; their objects count as not found.

    Raises:
        ConfigError: Options that exclude one another, or a field that the task does not have.
        DataError: The images or labels can't be used, or no class of the model is among those of the data.
        CheckpointError: The model can't be opened, or needs training before it answers.
    """
    require_within({"batch_size": (batch_size, COUNT), "workers": (workers, Within(0)), "iou": (iou, SHARE)})
    specs = (data,) if isinstance(data, str) else tuple(data)
    if predictions is not None:
        if start is not None or len(specs) != 1:
            raise ConfigError("--predictions scores one results file against one --data; leave the model out")
        _require_unset(
            {"save-predictions": save_predictions, "set": overrides, "step": step, "weights": weights != "last"}
        )
        options = _given(metric=metric, iou=iou, max_dets=max_dets, tiles=tiles, tile_overlap=tile_overlap)
        return _score(Path(predictions), specs[0], options)
    if start is None:
        raise ConfigError("nothing to evaluate; name a run folder, a weights file, or --predictions FILE")
    if iou is not None:
        raise ConfigError("--iou goes with --predictions FILE; write that with --save-predictions first")
    opened = _tiled(open_answering(start, weights, step), tiles, tile_overlap, overrides or {})
    opened = _measured_otherwise(opened, overrides or {}, metric=metric, max_dets=max_dets)
    source = prepared(opened.task, _open(specs, _rules(opened), masks=opened.task.needs.masks), training=False)
    evaluator = opened.task.evaluator(source)
    numbered = opened.objective.detector.num_classes if opened.task.needs.labels else 0
    translate = translation(opened.classes, source.classes, numbered)
    saved = None if save_predictions is None else results_file(Path(save_predictions), opened.task, source)
    # What is written down stays in the order of the data.
    batches = evaluation_batches_of(opened.task, source, batch_size=batch_size, workers=workers, by_size=saved is None)
    lost, answered_any, variance = list(source.skipped), False, BoxVariance()
    for batch, answered in asking(opened)(batches):
        lost, answered_any = [*lost, *batch.skipped], True
        variance.update(answered, batch)
        found = [translate(one) for one in answered]
        evaluator.update(found, batch)
        if saved is not None:
            saved.take(found, batch)
    _require_some(answered_any, [*lost, *batches.lost])
    if saved is not None:
        saved.close()
    results = evaluator.results()
    if clause := blindness(opened.task, results, variance):
        log.warning("%s; train it for longer, or with %s", clause, recipe_that_knows_photographs(opened.task))
    return {**results, **_named([*lost, *batches.lost], "count as images in which nothing was found")}


def predict(
    start: str | Path,
    images: str | Sequence[str],
    *,
    weights: Which = "last",
    query: str | Sequence[str] = (),
    out: str | Path | None = None,
    threshold: float = 0.5,
    step: Step | None = None,
    draw: bool = True,
    bands: Sequence[int] = (),
    save_crops: bool = False,
    device: str = "auto",
    tiles: int | None = None,
    tile_overlap: float | None = None,
    overrides: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Detect in images, or find where a patch came from; write pictures and `predictions.json`.

    A panoptic model also writes COCO's panoptic results, `panoptic.json` and PNGs in the folder `panoptic`.

    Args:
        start: A run folder or a weights file.
        images: Folders, globs, file lists or single files.
        weights: Which weights of a run folder: `last` or `best`.
        query: Patch images to look for, with a model that was pretrained or taught one-shot detection.
        out: Folder for the pictures and the file; `None` takes `predictions`. Those of an earlier prediction are
            replaced, and nothing else.
        step: Take a checkpoint of the run, which need not have finished.
        threshold: Least confidence that is drawn and cut out. The file holds every detection.
        draw: Whether to draw pictures.
        bands: Numbers, from 1, of the three channels that are drawn as red, green and blue, or of one drawn grey, of
            images with other channels than these; empty takes the first three.
        save_crops: Whether to save what was detected as pictures too, in the folder `crops`, by class.
        device: `auto`, `cpu` or `cuda`.
        tiles: As for `evaluate`.
        tile_overlap: As for `evaluate`.
        overrides: Dotted fields of the task, such as `task.eval_scale`, and their values.

    Returns:
        `out`, the number of `images` that were looked at, and `predictions` in COCO results format; where images can't
        be read, `unreadable` names each with the reason.

    Raises:
        ConfigError: Options that don't fit the model or one another; or `out` is a file, or something in it that is not
            ours, such as one of the images, would be replaced.
        DataError: Not one of the images, or of the patches, can be used.
        CheckpointError: The model can't be opened, or needs training before it answers.
    """
    require_within({"threshold": (threshold, SHARE)})
    folder = Path(out or "predictions")
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; choose another --out")
    opened = _tiled(open_answering(start, weights, step), tiles, tile_overlap, overrides or {})
    opened = _measured_otherwise(opened, overrides or {})
    source = _open((images,) if isinstance(images, str) else images, _rules(opened))
    asked_for = _queries(query, _rules(opened))
    _require_query(opened, given=bool(asked_for))
    require_bands(bands, opened.objective.detector.in_channels)
    _prepare(folder, source, draw=draw, masks=opened.task.needs.masks)
    results: list[dict[str, Any]] = []
    segmented: PanopticResults | None = None
    name_of, lost = FileNames(), list(source.skipped)
    category_ids = opened.info.get("category_ids")
    classes = tuple(one.key for one in asked_for) or opened.classes
    patches = [one.image for one in asked_for] or None
    ask, views = asking(opened, patches, device), opened.task.views(training=False)
    for index, sample in _readable(Unlabelled(source), lost):
        ((_, (found,)),) = ask([collate([views(sample, chance.generator(0, "views", 0, index))])])
        key, segmentation, name = sample.key, found.segmentation, name_of(sample.key)
        results += rows_of(found, key, classes, category_ids)
        if segmentation is not None:
            segmented = segmented or PanopticResults(folder / "panoptic.json")
            segmented.add(segmentation, key, key, category_ids=category_ids or (), classes=classes)
        shown = seen(sample.image, bands)
        if draw:
            save_signed(_drawn(shown, found, classes, threshold), folder / f"{name}.png")
        if save_crops:
            save_cut_out(shown, found.above(threshold), classes, folder / "crops", name)
    _require_some(len(lost) < len(source) + len(source.skipped), lost)
    if segmented is not None:
        segmented.close()
    write_whole(folder / "predictions.json", json.dumps(results, indent=1).encode(), Disk())
    told = _named(lost, "are left out")
    return {"out": str(folder), "images": len(source) + len(source.skipped) - len(lost), "predictions": results, **told}


def _queries(query: str | Sequence[str] | None, rules: ImageRules) -> list[Sample]:
    """Read the images to look for; all of them, because one that is left out would not be missed in the answers.

    Raises:
        DataError: One of them can't be used.
    """
    if not query:
        return []
    source = _open((query,) if isinstance(query, str) else query, replace(rules, min_side=1))
    lost = list(source.skipped)
    read = [sample for _, sample in _readable(source, lost)]
    if lost:
        raise DataError("\n".join(f"--query {one.path}: can't be used ({one.reason}); leave it out" for one in lost))
    return read


def _prepare(folder: Path, source: Source, *, draw: bool, masks: bool) -> None:
    """Make the folder for predictions, if nothing in it would be lost, and say what becomes of earlier ones."""
    another, rows, segmented = "choose another --out", folder / "predictions.json", folder / "panoptic.json"
    for path in (rows, segmented) if masks else (rows,):
        require_results_or_nothing(path, another)
    for pictures in ([folder] if draw else []) + ([segmented.with_suffix("")] if masks else []):
        require_pictures_replaceable(source, pictures, another)
    if rows.exists():
        log.warning(
            "%s: is that of an earlier prediction and will be replaced, while pictures of other images stay; %s",
            *(rows, another),
        )
    folder.mkdir(parents=True, exist_ok=True)


def _require_query(opened: Opened, *, given: bool) -> None:
    """Refuse a model that finds patches without a patch to find, and a patch for any other model."""
    finds_patches = isinstance(opened.objective, PatchObjective)
    if finds_patches and not given:
        raise ConfigError(
            "the model was taught to find patches and knows no classes; add --query PATCH.png, or fine-tune it"
        )
    if given and not finds_patches:
        raise ConfigError(
            "--query asks a model that was taught to find patches; this one was taught by "
            f"{name_of('ssldet.tasks', type(opened.task))}"
        )


def _drawn(shown: Pixels, found: Detections, classes: Sequence[str], threshold: float) -> Image.Image:
    if found.segmentation is not None:
        return draw_segmentation(shown, found.segmentation, classes=classes)
    return draw_detections(shown, found, classes=classes, threshold=threshold)


def _open(specs: Sequence[str], rules: ImageRules = RULES, *, masks: bool = False) -> Source:
    return open_source(specs, rules, masks=masks)


def _rules(opened: Opened) -> ImageRules:
    """Return which images are usable; larger ones are where the task cuts them into tiles."""
    rules = LARGE if opened.task.in_parts else RULES
    return replace(rules, channels=opened.objective.detector.in_channels)


def _readable(source: Source, lost: list[Skipped]) -> Iterator[tuple[int, Sample]]:
    """Yield every image in order with its number, and take down those that can't be read."""
    for index in range(len(source)):
        try:
            yield index, source[index]
        except UnreadableError as error:
            lost.append(Skipped(path=error.path, reason=error.reason))


def _named(lost: Sequence[Skipped], then: str) -> dict[str, Any]:
    """Say which images could not be read, and return it for the results; empty where there are none.

    Args:
        lost: What could not be read.
        then: What became of these images.
    """
    paths = _by_path(lost)
    if not paths:
        return {}
    log.warning("%s; they %s", unreadable(paths), then)
    return {"unreadable": paths}


def _require_some(answered: bool, lost: Sequence[Skipped]) -> None:
    """Say so if no image could be read: figures of nothing would look like those of a bad model."""
    if not answered:
        raise DataError(nothing_readable(_by_path(lost)))


def _by_path(lost: Sequence[Skipped]) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in lost}


def _require_unset(options: Mapping[str, object]) -> None:
    """Refuse what changes a model, or what is written of its answers, where there is none.

    Raises:
        ConfigError: With a line for each.
    """
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(
            [f"--{name} has no meaning for --predictions, which asks no model; leave it out" for name in given]
        )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _measured_otherwise(opened: Opened, overrides: Mapping[str, object], **options: Any) -> Opened:
    """Return the model with other choices of its task, so far as they are given."""
    if other := [path for path in overrides if not path.startswith("task.")]:
        raise ConfigError([f"{path}: only fields of the task, task.NAME, can change in evaluation" for path in other])
    changes = {path.removeprefix("task."): value for path, value in overrides.items()} | _given(**options)
    if not changes:
        return opened
    task = override(opened.task, changes)
    check(task)
    return replace(opened, task=task)


def _tiled(opened: Opened, side: int | None, overlap: float | None, overrides: Mapping[str, object]) -> Opened:
    """Return the model with other tiles, if they are given.

    Raises:
        ConfigError: The task knows no tiles, or they are given twice, or there is an overlap of nothing.
    """
    given = _given(tile_size=side, tile_overlap=overlap)
    if not given:
        return opened
    if "tile_size" not in hints_of(type(opened.task)):
        name = name_of("ssldet.tasks", type(opened.task))
        raise ConfigError(f"--tiles: {name} looks at images as a whole; leave tiles out")
    if twice := sorted(given.keys() & {path.removeprefix("task.") for path in overrides}):
        raise ConfigError([f"--set task.{name}: is given by an option too; leave one of them out" for name in twice])
    chosen = _measured_otherwise(opened, {}, **given)
    if getattr(chosen.task, "tile_size", None) is None:
        raise ConfigError("--tile-overlap: there are no tiles to overlap; add --tiles SIDE")
    return chosen


def _score(predictions: Path, spec: str, options: dict[str, Any]) -> dict[str, Any]:
    """Score a results file by what is registered for this kind of data."""
    form = spec.split(":", 1)[0]
    if ":" not in spec or form not in names("ssldet.scorers"):
        raise ConfigError(f"{spec}: predictions can be scored against {', '.join(names('ssldet.scorers'))}:…")
    scorer: Callable[..., dict[str, Any]] = find("ssldet.scorers", form)
    if wrong := options.keys() - signature(scorer).parameters.keys():
        raise ConfigError(
            [f"--{name.replace('_', '-')} has no meaning for {form}: data; leave it out" for name in sorted(wrong)]
        )
    return dict(scorer(predictions, spec, **options))
