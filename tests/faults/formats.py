"""folder -> every format that ssldet reads, each with a sound file that is then damaged."""

import hashlib
import importlib.util
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from downstream.annotations.shapes import write_shapes
from downstream.annotations.yolo_files import label_file
from downstream.metrics.panoptic_predictions import score_panoptic
from downstream.metrics.predictions import score_predictions
from ssldet.citations import cited
from ssldet.data.images import ImageRules, read_image
from ssldet.data.sources import open_source
from ssldet.engine.checkpoint import restore_objective, save_weights
from ssldet.engine.description import describe, stated
from ssldet.engine.folder import RunFolder
from ssldet.engine.progress import Progress
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.run import Run
from ssldet.engine.steps import Checkpoints
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import load, override, to_document
from ssldet.registry import find
from ssldet.report.record import read_record
from ssldet.report.story import key_figures
from ssldet.verbs.choosing import resolve
from ssldet.verbs.data import check_data
from ssldet.verbs.look import report
from ssldet.verbs.opening import open_model
from ssldet.weights.files import read_state
from tests.faults import mutation
from tests.faults.fuzzing import Format
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR
from tests.tables import as_dataset

RULES = ImageRules()
SMALL = {
    "detector.width": 16,
    "detector.heads": 2,
    "detector.encoder_layers": 1,
    "detector.decoder_layers": 1,
    "detector.feedforward": 16,
    "detector.num_queries": 4,
    "detector.num_classes": 3,
    "detector.backbone.tiny_channels": [4, 4, 4],
}


def formats(folder: Path) -> list[Format]:
    """Write a sound file of every kind into a folder, and return the kinds."""
    write_shapes(folder / "made", images=2, seed=3, size=48, stuff=True)
    return [*_annotations(folder), *_images(folder), *_runs(folder), *_weights(folder)]


def _looked_at(spec: str, *, masks: bool = False) -> Callable[[], None]:
    """Return what opens labelled data as training does, reads all of it, and lists its problems."""

    def read() -> None:
        check_data(spec)
        source = open_source([spec], RULES, masks=masks)
        for number in range(len(source)):
            source[number]
            source.targets_of(number)

    return read


def _annotations(folder: Path) -> Iterator[Format]:
    made, images = folder / "made", folder / "made" / "images"
    coco = made / "instances.json"
    document = json.loads(coco.read_text())
    spec = f"coco:{coco}:{images}"
    yield Format(name="coco", file=coco, damage=mutation.of_json, read=_looked_at(spec, masks=True), cases=500)
    first = document["annotations"][0]
    rows = [{name: first[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.5}] * 2
    results = folder / "results.json"
    results.write_text(json.dumps(rows))
    for metric in ("coco", "voc"):
        yield Format(
            name=f"results-{metric}", file=results, damage=mutation.of_json, cases=90,
            read=lambda metric=metric: score_predictions(results, spec, metric=metric),
        )  # fmt: skip
    panoptic = f"panoptic:{made}/panoptic.json:{made}/panoptic:{images}"
    png = sorted((made / "panoptic").glob("*.png"))[0]
    looked = _looked_at(panoptic, masks=True)
    yield Format(name="panoptic-json", file=made / "panoptic.json", damage=mutation.of_json, read=looked, cases=300)
    yield Format(name="panoptic-png", file=png, damage=mutation.of_bytes, read=looked, cases=100)
    answers = folder / "answers.json"
    answers.write_text((made / "panoptic.json").read_text())
    yield Format(
        name="panoptic-results", file=answers, damage=mutation.of_json, cases=80,
        read=lambda: score_panoptic(Path(f"{answers}:{made}/panoptic"), panoptic),
    )  # fmt: skip
    yield from _yolo(folder, images, document)
    yield from _voc(folder, images, document)


def _yolo(folder: Path, images: Path, document: dict[str, Any]) -> Iterator[Format]:
    root = folder / "yolo"
    (root / "images" / "train").mkdir(parents=True)
    names = [path.name for path in sorted(images.iterdir())]
    for name in names:
        (root / "images" / "train" / name).write_bytes((images / name).read_bytes())
        label = label_file(root / "images" / "train" / name)
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.3 0.1 0.2 0.3\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames:\n  0: a\n  1: b\n")
    read = _looked_at(f"yolo:{root}:train")
    yield Format(name="yolo-txt", file=label, damage=mutation.of_text, read=read, cases=300)
    yield Format(name="yolo-yaml", file=root / "data.yaml", damage=mutation.of_text, read=read, cases=400)


def _voc(folder: Path, images: Path, document: dict[str, Any]) -> Iterator[Format]:
    root = folder / "voc"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    stems = []
    for path in sorted(images.iterdir()):
        (root / "JPEGImages" / path.name).write_bytes(path.read_bytes())
        stems.append(path.stem)
        xml = root / "Annotations" / f"{path.stem}.xml"
        xml.write_text(
            f"<annotation><filename>{path.name}</filename><size><width>48</width><height>48</height><depth>3</depth>"
            "</size><object><name>dog</name><difficult>0</difficult><truncated>0</truncated><bndbox><xmin>11</xmin>"
            "<ymin>5.5</ymin><xmax>30</xmax><ymax>34</ymax></bndbox></object></annotation>"
        )
    listed = root / "ImageSets" / "Main" / "train.txt"
    listed.write_text("".join(f"{stem}\n" for stem in stems))
    read = _looked_at(f"voc:{root}:train")
    yield Format(name="voc-xml", file=xml, damage=mutation.of_text, read=read, cases=800)
    yield Format(name="voc-list", file=listed, damage=mutation.of_text, read=read, cases=400)


def _images(folder: Path) -> Iterator[Format]:
    picture = Image.open(sorted((folder / "made" / "images").iterdir())[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    place = folder / "pictures"
    place.mkdir()
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        file = place / f"a.{suffix}"
        picture.save(file, **({"exif": exif} if suffix in {"jpg", "png", "tif", "webp"} else {}))
        read = lambda file=file: read_image(file, RULES)  # noqa: E731
        yield Format(name=f"image-{suffix}", file=file, damage=mutation.of_bytes, read=read, cases=120)
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number, suffix in enumerate(("jpg", "png")):
            archive.add(place / f"a.{suffix}", f"{number}-ü-{'x' * 120}.{suffix}")
    read = _looked_at(f"tar:{folder}/a.tar")
    yield Format(name="tar", file=folder / "a.tar", damage=mutation.of_bytes, read=read, cases=300)
    if importlib.util.find_spec("datasets"):
        as_dataset(folder / "made" / "instances.json").to_parquet(folder / "a.parquet")
        read = _looked_at(f"hf:{folder}/a.parquet")
        yield Format(name="parquet", file=folder / "a.parquet", damage=mutation.of_bytes, read=read, cases=12)
    for name, text in (("list.txt", "pictures/a.jpg\npictures/*.png\n"), ("list.json", '["pictures/a.jpg", "b.png"]')):
        file = folder / name
        file.write_text(text)
        damage = mutation.of_json if name.endswith("json") else mutation.of_text
        read = lambda file=file: open_source([str(file)], RULES)  # noqa: E731
        yield Format(name=name, file=file, damage=damage, read=read, cases=200)


def _runs(folder: Path) -> Iterator[Format]:
    run = override(resolve("detection/tiny"), SMALL | {"data.train": f"coco:{folder}/made/instances.json"})
    source = open_source([f"coco:{folder}/made/instances.json:{folder}/made/images"], RULES)
    home = RunFolder.create(folder / "run", run)
    home.release()
    toml = home.path / "run.toml"
    yield Format(name="run.toml", file=toml, damage=mutation.of_text, read=lambda: load(Run, toml), cases=500)
    lines = [{"kind": "train", "step": step, "loss": 1.0, "loss/box": 0.5, "lr": 0.1} for step in (1, 2, 3)]
    lines.append({"kind": "eval", "step": 3, "AP": 0.5, "per_class": {"a": 0.5}})
    (home.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home.path / "quarantine.jsonl").write_text(json.dumps({"path": "a.jpg", "reason": "truncated"}) + "\n")
    home.write_json("transfer.json", {"rows": [{"section": "queries", "outcome": "loaded", "tensors": 1}]})
    home.write_json("lineage.json", {"stages": [{"task": to_document(run.task), "step": 3}]})
    home.update(results={"AP": 0.5, "per_class": {"a": 0.5}}, bad_files={"truncated": 1})

    def resumed() -> None:
        home.update(status="stopped")
        home.cut_metrics(2)
        Quarantine(source, 0.5, home.path / "quarantine.jsonl")
        record = read_record(home.path)
        key_figures(record)
        cited([*home.lineage(), record.choices])

    for name, damage in (
        ("run.json", mutation.of_json),
        ("lineage.json", mutation.of_json),
        ("transfer.json", mutation.of_json),
        ("metrics.jsonl", mutation.of_json_lines),
        ("quarantine.jsonl", mutation.of_json_lines),
    ):
        file = home.path / name
        yield Format(name=name, file=file, damage=damage, read=resumed, cases=40)
        yield Format(name=f"report-{name}", file=file, damage=damage, read=lambda: report(home.path), cases=2)


def _weights(folder: Path) -> Iterator[Format]:
    run = override(resolve("detection/tiny"), SMALL)
    source = open_source([f"coco:{folder}/made/instances.json:{folder}/made/images"], RULES)
    objective = run.task.objective(run.detector.build())
    weights = folder / "model.safetensors"
    save_weights(weights, objective, describe(run, stated(source), 3))
    opened = lambda: open_model(weights)  # noqa: E731
    yield Format(name="safetensors", file=weights, damage=mutation.of_bytes, read=opened, cases=100)
    yield Format(name="safetensors-header", file=weights, damage=_in_header, read=opened, cases=100)
    torch.save({"model": objective.detector.state_dict()}, folder / "model.pth")
    foreign = folder / "model.pth"
    yield Format(name="pth", file=foreign, damage=mutation.of_bytes, read=lambda: read_state(foreign), cases=80)
    checkpoints = Checkpoints(folder / "checkpoints")
    progress = Progress(objective, replace(run.optim, ema=0.9), 3)
    checkpoints.save(3, {**progress.state_dict(), "run": to_document(run), "data": {"fingerprint": "", "images": 2}})
    path = checkpoints.path(3)

    def signed() -> None:
        """Let the checksum agree, so that the content is read."""
        total = path.with_name(f"{path.name}.sha256")
        total.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        checkpoints.newest()

    yield Format(name="checkpoint", file=path, damage=mutation.of_bytes, read=signed, cases=80)
    yield from _foreign(folder)


def _in_header(whole: bytes, chance: Any) -> bytes:
    """Damage what a safetensors file states about itself."""
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    info = json.loads(header["__metadata__"]["ssldet"])
    header["__metadata__"]["ssldet"] = mutation.of_json(json.dumps(info).encode(), chance).decode("utf-8", "replace")
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + whole[8 + size :]


def _foreign(folder: Path) -> Iterator[Format]:
    """Models that were exported to other projects' formats, where what is stated beside the tensors is damaged."""
    for to, config, name in (
        ("huggingface", SMALL_DETR, "transformers"),
        ("detr", SMALL_DETR, "detr.pth"),
        ("deformable_detr", replace(SMALL_DEFORMABLE_DETR, backbone=BackboneConfig()), "deformable.pth"),
    ):
        run = override(replace(resolve("detection/tiny"), detector=config), {"detector.num_classes": 3})
        source = open_source([f"coco:{folder}/made/instances.json:{folder}/made/images"], RULES)
        whole = folder / f"{to}.safetensors"
        save_weights(whole, run.task.objective(run.detector.build()), describe(run, stated(source), 3))
        objective, info = restore_objective(whole)
        home = folder / name
        find("ssldet.exporters", to)(objective, info, home)
        read = lambda home=home: open_model(home)  # noqa: E731
        if home.is_dir():
            for part in ("config.json", "preprocessor_config.json"):
                yield Format(name=part, file=home / part, damage=mutation.of_json, read=read, cases=6)
        else:
            yield Format(name=f"{to}-options", file=home, damage=_in_options, read=read, cases=6)


def _in_options(whole: bytes, chance: Any) -> bytes:
    """Damage the options of a training run in a file of PyTorch."""
    document = torch.load(BytesIO(whole), weights_only=True)
    damaged = mutation.of_json(json.dumps(document["args"]).encode(), chance)
    with suppress(ValueError):
        document["args"] = json.loads(damaged)
    out = BytesIO()
    torch.save(document, out)
    return out.getvalue()
