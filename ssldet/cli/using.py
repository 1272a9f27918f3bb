"""command line -> the verbs that use a trained model."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ssldet.cli.options import AtStep, Data, Json, Overrides, Start, TileOverlap, Tiles, Which, Whole, assignments
from ssldet.cli.printing import Figures, FoundTable, prints


def evaluate(
    start: Start | None = None,
    *,
    data: Data,
    weights: Which = "last",
    predictions: Path | None = None,
    save_predictions: Path | None = None,
    metric: Literal["coco", "voc"] | None = None,
    iou: float | None = None,
    max_dets: Whole | None = None,
    batch_size: Whole = 1,
    workers: Whole = 2,
    tiles: Tiles = None,
    tile_overlap: TileOverlap = None,
    set_: Overrides = None,
    step: AtStep = None,
    json_: Json = False,
) -> None:
    """Measure a detector on labelled images, or a pretext task on plain ones.

    Args:
        data: coco:ANN.json:IMAGES, voc:ROOT:SPLIT, yolo:ROOT:SPLIT, panoptic:ANN.json:PNGS:IMAGES, or plain images.
        predictions: A results file to score instead of a model: COCO's, or PRED.json:PNGS against panoptic data.
        save_predictions: Results file to write, as COCO's.
        metric: Definition of AP; default: the task's, and for predictions that of the data's form.
        iou: Least overlap of a correct box in VOC's AP of predictions; default: 0.5.
        max_dets: Detections per image and class that count in COCO's AP; default: the task's, which is 100.
        batch_size: Images read at a time; results do not depend on it.
        workers: Loader processes.
    """
    from ssldet import verbs

    found = verbs.evaluate(
        start, data, weights=weights, step=step, predictions=predictions, save_predictions=save_predictions,
        metric=metric, iou=iou, max_dets=max_dets, batch_size=batch_size, workers=workers,
        tiles=tiles, tile_overlap=tile_overlap, overrides=assignments(set_),
    )  # fmt: skip
    prints(lambda: Figures(found))(json_=json_)


def predict(
    start: Start,
    *images: str,
    weights: Which = "last",
    query: Data | None = None,
    out: Path | None = None,
    threshold: float = 0.5,
    draw: Annotated[bool, Parameter(negative="--no-draw")] = True,
    bands: Annotated[list[Whole] | None, Parameter(consume_multiple=True, negative=())] = None,
    save_crops: Annotated[bool, Parameter(negative=())] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tiles: Tiles = None,
    tile_overlap: TileOverlap = None,
    set_: Overrides = None,
    step: AtStep = None,
    json_: Json = False,
) -> None:
    """Detect objects in images and draw them, or find patches in images.

    Args:
        images: Folders, globs, file lists or single files.
        query: Patch images to look for, with a pretrained or a one-shot run.
        out: Folder for the pictures and predictions.json; default: predictions/.
        threshold: Least confidence that is shown, drawn and cut out; the file holds every detection.
        draw: Draw pictures.
        bands: Channels, from 1, that are drawn as red, green and blue where images have others; default: the first.
        save_crops: Save each detection as a picture too, in the folder crops, by class.
        device: Where to compute.
    """
    from ssldet import verbs

    found = verbs.predict(
        start, images, weights=weights, step=step, query=query or (), out=out, threshold=threshold, draw=draw,
        bands=bands or (), save_crops=save_crops, device=device, tiles=tiles, tile_overlap=tile_overlap,
        overrides=assignments(set_),
    )  # fmt: skip
    prints(lambda: FoundTable(found, threshold, draw))(json_=json_)


def export(
    start: Start,
    *,
    to: str,
    out: Path | None = None,
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    weights: Which = "last",
    step: AtStep = None,
    json_: Json = False,
) -> None:
    """Write a detector in another format, load it back and check that its outputs are the same.

    Args:
        to: A name from 'ssldet list exporters'; or hub:USER/NAME, which sends weights and card to the Hugging Face hub.
        out: File to create; none for hub:.
        data: Labelled images on which the detector is measured before and after, as by 'ssldet evaluate'.
    """
    from ssldet import verbs

    prints(verbs.export)(start, to=to, out=out, data=data or (), weights=weights, step=step, json_=json_)


def serve(
    start: Start,
    *,
    weights: Which = "last",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    host: str = "127.0.0.1",
    port: Whole = 7860,
    step: AtStep = None,
) -> None:
    """Show a page to drop images on; needs the extra 'app'.

    Args:
        device: Where to compute.
        host: Address to listen on; another than this machine's own lets others in, without a password.
        port: Port to listen on; 0 takes a free one.
    """
    from ssldet import serving

    serving.serve(start, weights=weights, step=step, device=device, host=host, port=port)
