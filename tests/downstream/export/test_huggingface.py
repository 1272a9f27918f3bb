"""Against transformers itself, offline: both directions, with outputs compared; importing it is what takes the time."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from downstream.detection import Detection
from downstream.export import huggingface
from downstream.export.detr import unfit as unfit_for_detr
from downstream.export.huggingface import export
from downstream.export.proof import answers, largest_difference, two_images
from pretext.random_query_patch import RandomQueryPatch
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from ssldet.weights.huggingface import detector_from_folder
from ssldet.weights.image_processor import Processor
from tests.models import SMALL_DETR

SIZES = {"num_queries": 5, "d_model": 128, "encoder_layers": 1, "decoder_layers": 2}
SIZES |= {
    f"{side}_{what}": count
    for side in ("encoder", "decoder")
    for what, count in (("attention_heads", 8), ("ffn_dim", 40))
}
CONFIG = replace(SMALL_DETR, num_classes=4, num_queries=5, width=128, heads=8, pre_norm=False)
KINDS = {
    "boxes": CONFIG,
    "pre-norm": replace(CONFIG, pre_norm=True),
    "masks": replace(CONFIG, masks=True, mask_attention="joint"),
    "dilated": replace(CONFIG, backbone=BackboneConfig(name="resnet50", output_stride=16)),
    "timm": replace(CONFIG, backbone=BackboneConfig(name="timm/resnet14t")),
}
CLASSES = ["dog", "", "traffic light", "überbau"]


@pytest.fixture(scope="session")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    library.utils.logging.disable_progress_bar()
    return library


def info(config, **more):
    return {"detector": to_document(config), "task": to_document(Detection(eval_scale=96, max_size=800)), **more}


def write(config, out):
    torch.manual_seed(2)
    objective = Detection().objective(config.build())
    # Fresh heads answer all queries alike.
    torch.nn.init.normal_(objective.detector.box_head.layers[-1].weight)
    return objective, export(objective, info(config, classes=CLASSES), out)


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_transformers_answers_alike_and_we_read_bit_for_bit(kind, transformers, tmp_path):
    config, out = KINDS[kind], tmp_path / "deep" / "model"
    objective, report = write(config, out)
    assert report.equal == report.tensors == len(objective.detector.state_dict())
    assert 0 < report.difference < 1e-4
    assert report.proof in (out / "README.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    found = detector_from_folder(out)
    assert found.config == config
    assert found.classes == tuple(CLASSES)
    assert found.processor == Processor(short_side=96, long_side=800)
    own = objective.detector.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.detector.state_dict().items())


def theirs(transformers, kind):
    timm = {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": False}
    if kind == "own-resnet":
        sizes = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
        inner = transformers.ResNetConfig(**sizes, out_features=["stage4"])
        timm = {"backbone_config": inner, "use_timm_backbone": False}
    table = "Table" in kind
    configuration = transformers.TableTransformerConfig if table else transformers.DetrConfig
    model = getattr(transformers, kind if table or "For" in kind else "DetrForObjectDetection")
    torch.manual_seed(3)
    made = model(configuration(num_labels=4, **timm, **SIZES)).eval()
    for name, value in made.state_dict().items():
        if "running_" in name or "norm" in name:
            value += torch.rand_like(value) / 4
    return made


@pytest.mark.parametrize(
    "kind", ["DetrForObjectDetection", "DetrForSegmentation", "TableTransformerForObjectDetection", "own-resnet"]
)
def test_what_transformers_writes_we_answer_alike(kind, transformers, tmp_path):
    model = theirs(transformers, kind)
    model.save_pretrained(tmp_path)
    found = detector_from_folder(tmp_path)
    assert found.classes == ()
    assert len(found.detector.state_dict()) > 100
    images, padding = two_images(torch.device("cpu"))
    logits, boxes, *masks = answers(found.detector.eval(), images, padding)
    with torch.no_grad():
        given = model(pixel_values=images, pixel_mask=(~padding).long())
    assert len(masks) == (kind == "DetrForSegmentation")
    wanted = [given.logits, given.pred_boxes, *([given.pred_masks.flatten(0, 1)] if masks else [])]
    assert largest_difference([logits[-1], boxes[-1], *masks], wanted) < 1e-4
    assert logits[-1].std() > 0.1


def test_the_automatic_classes_of_transformers_take_the_folder(transformers, tmp_path):
    write(CONFIG, tmp_path / "model")
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "DetrForObjectDetection"
    assert model.config.id2label == {0: "dog", 1: "N/A", 2: "traffic light", 3: "überbau"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    prepared = processor(images=image, return_tensors="pt")
    assert prepared["pixel_values"].shape == (1, 3, 96, 144)
    detector = detector_from_folder(tmp_path / "model").detector
    ours = detector.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert (prepared["pixel_values"].mean() - ours.mean()).abs() < 0.05


def test_a_folder_opens_like_a_run(transformers, tmp_path):
    write(CONFIG, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    assert opened.classes == tuple(CLASSES)
    assert to_document(opened.task) == info(CONFIG)["task"] | {"eval_rule": "transformers"}
    assert opened.info["category_ids"] == []
    report = export(opened.objective, opened.info, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    assert report.equal == report.tensors


def test_the_processor_that_is_written_sizes_images_as_the_task_does_or_the_difference_is_said(caplog, tmp_path):
    for rule, size, said in (("detr", (), True), ("transformers", (), False), ("fixed", (64, 96), False)):
        task = Detection(eval_rule=rule, eval_size=size, eval_scale=96, max_size=800)
        caplog.clear()
        out = tmp_path / rule
        export(task.objective(CONFIG.build()), info(CONFIG) | {"task": to_document(task)}, out)
        assert ("rounds sizes in another way" in caplog.text) == said
        read = detector_from_folder(out).processor.sized()
        for image in ((351, 97), (60, 90)):
            assert read.of(image) == task.views(training=False).of(image) or said


def test_what_transformers_changed_since_goes_before_our_own_words(tmp_path):
    folder = tmp_path / "model"
    write(CONFIG, folder)
    sizes = json.loads((folder / "preprocessor_config.json").read_text())
    sizes["size"] = {"shortest_edge": 64, "longest_edge": 900}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    opened = open_model(folder)
    assert (opened.task.eval_scale, opened.task.max_size) == (64, 900)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"] = "cat"
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_model(folder)
    assert opened.classes[0] == "cat"
    assert opened.task == Detection(eval_scale=64, max_size=900, eval_rule="transformers")


def test_a_copy_that_answers_otherwise_is_not_written(transformers, tmp_path):
    objective = Detection().objective(CONFIG.build())
    objective.detector.decoder.layers[0].pre_norm = True
    with pytest.raises(CheckpointError, match="not the same model"):
        export(objective, info(CONFIG), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_transformers_reads_in_part_only_is_not_written(monkeypatch, tmp_path):
    torch.manual_seed(0)
    report = {"missing_keys": {"bbox_predictor.layers.0.bias"}, "unexpected_keys": set()}
    kind = SimpleNamespace(from_pretrained=lambda *_, **__: (None, report))
    quiet = SimpleNamespace(logging=SimpleNamespace(disable_progress_bar=lambda: None))
    library = SimpleNamespace(DetrForObjectDetection=kind, utils=quiet)
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(huggingface.importlib, "import_module", lambda _: library)
    with pytest.raises(CheckpointError, match=r"missing_keys .*bbox_predictor\.layers\.0\.bias"):
        export(Detection().objective(CONFIG.build()), info(CONFIG), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        (
            {"normalise_features": True, "position_at_input": True},
            ["normalise_features", "position_at_input"],
        ),
        ({"backbone": BackboneConfig(name="tiny")}, ["detector.backbone.name: .* 'tiny' is none"]),
        ({"backbone": BackboneConfig(name="timm/convnext_atto")}, ["'timm/convnext_atto' is none"]),
        ({"backbone": BackboneConfig(name="resnet18", frozen_norm=False)}, ["frozen_norm: its norms are fixed"]),
        (
            {"masks": True, "mask_attention": "per_head", "pre_norm": True},
            ["detector.pre_norm: its segmentation", "mask_attention: its attention maps .* --to detr"],
        ),
        ({"masks": True, "mask_attention": "joint", "width": 96}, ["detector.width"]),
    ],
)
def test_what_transformers_cannot_hold_is_named_all_at_once(changes, reasons, tmp_path):
    config = replace(CONFIG, **changes)
    with pytest.raises(CheckpointError, match="transformers can't hold this detector") as caught:
        export(Detection().objective(config.build()), info(config), tmp_path / "model")
    for reason in reasons:
        assert caught.match(reason)
    assert list(tmp_path.iterdir()) == []


def test_masks_that_transformers_refuses_detr_takes():
    config = replace(KINDS["masks"], mask_attention="per_head", backbone=BackboneConfig(name="resnet50"))
    assert unfit_for_detr(config.build()) == []


def test_without_transformers_our_own_reader_proves_and_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda _: None)
    _, report = write(CONFIG, tmp_path / "model")
    assert (report.equal, report.difference) == (report.tensors, 0.0)
    assert "transformers is not installed" in caplog.text


def test_heads_of_a_pretext_task_stay_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda _: None)
    task = RandomQueryPatch(num_patches=5)
    report = export(task.objective(CONFIG.build()), info(CONFIG) | {"task": to_document(task)}, tmp_path / "model")
    assert report.tensors == len(CONFIG.build().state_dict())
    size = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["size"]
    assert size == {"shortest_edge": 800, "longest_edge": 1333}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(Detection().objective(CONFIG.build()), info(CONFIG), tmp_path / "model")
