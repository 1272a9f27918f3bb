"""Runs where detectron2 is installed: our model behind its contract, our data in its catalogue."""

import copy
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed: its model, data and tools are not tested")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, inference_on_dataset
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from downstream.annotations.panoptic import open_panoptic
from downstream.detection import Detection
from downstream.export.detectron2 import backbone, environment, lazy
from downstream.export.detectron2.building import Blueprint
from downstream.export.detectron2.catalogue import dataset, opened, register
from downstream.export.detectron2.checkpoints import export
from downstream.export.detectron2.environment import setup_environment
from downstream.export.detectron2.evaluation import stand_in_for_panopticapi
from downstream.export.detectron2.mapper import Mapper
from downstream.export.detectron2.model import SSLDet, batch_of
from downstream.export.detectron2.solver import ClippedAdamW
from downstream.export.detectron2.verbs import path_of
from downstream.panoptic import Panoptic
from ssldet.boxes import to_absolute
from ssldet.data.images import ImageRules
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.optim import schedule
from ssldet.engine.run import OptimConfig
from ssldet.errors import ConfigError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.recipe import to_document
from ssldet.verbs.choosing import resolve
from ssldet.verbs.opening import open_model

DETECTOR = DETRConfig(
    backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0),
    num_classes=3, num_queries=9, width=32, heads=2, encoder_layers=1, decoder_layers=2, feedforward=32,
)  # fmt: skip
DEFORMABLE = DeformableDETRConfig(
    backbone=DETECTOR.backbone, num_classes=3, num_queries=9, width=64, heads=2, encoder_layers=1, decoder_layers=2,
    feedforward=32,
)  # fmt: skip
TWO_STAGES = replace(DEFORMABLE, refine_boxes=True, two_stage=True)
ALLOWED = {"allow_objects": True}
SIZES = {"scales": (48,), "eval_scale": 48, "max_size": 96, "crop": 0.0}


@pytest.fixture
def scenes(tmp_path):
    """Four images with two things and a stuff each, as COCO and as panoptic data."""
    generator = np.random.default_rng(0)
    for folder in ("images", "pngs"):
        (tmp_path / folder).mkdir()
    images, boxes, segments = [], [], []
    for number in range(1, 5):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        ids = np.full((60, 80), 3)
        ids[5:25, 10 : 30 + number] = 1
        ids[30:50, 40:70] = 2
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)).save(
            tmp_path / "pngs" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        for thing, box in ((7, [10, 5, 20 + number, 20]), (2, [40, 30, 30, 20])):
            row = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": thing}
            boxes.append({"id": len(boxes) + 1, "image_id": number, **row})
        info = [{"id": n, "category_id": key, "iscrowd": 0} for n, key in ((1, 7), (2, 2), (3, 5))]
        segments.append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
    named = [(7, "owl", 1), (5, "sky", 0), (2, "bat", 1)]
    categories = [{"id": key, "name": name, "isthing": thing} for key, name, thing in named]
    coco = {"images": images, "annotations": boxes, "categories": [categories[0], categories[2]]}
    panoptic = {"images": images, "annotations": segments, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    return tmp_path


def made(task, detector, classes, stuff=()):
    torch.manual_seed(3)
    model = SSLDet(blueprint=Blueprint(task=task, detector=detector), classes=classes, stuff=stuff)
    # Fresh heads answer nearly the same to every query.
    for name, parameter in model.detector.named_parameters():
        if name.startswith(("class_head", "box_head")) and name.endswith("weight") and len(parameter) < 10:
            torch.nn.init.normal_(parameter)
    return model


def entries(spec, task, training=False):
    mapper = Mapper(task, training=training)
    torch.manual_seed(0)
    return [mapper(row) for row in dataset(spec, task, training=training)]


def test_names_are_those_of_an_objective_and_a_second_import_does_no_harm():
    task = Detection(**SIZES)
    model = made(task, DETECTOR, ("a", "b", "c"))
    assert list(model.state_dict()) == list(task.objective(DETECTOR.build()).state_dict())
    assert META_ARCH_REGISTRY.get("SSLDet") is SSLDet
    for _ in range(2):
        importlib.reload(backbone)
    assert "build_ssldet_fpn_backbone" in BACKBONE_REGISTRY
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("detector", [DETECTOR, DEFORMABLE, TWO_STAGES], ids=["DETR", "Deformable DETR", "two stages"])
def test_boxes_are_those_of_our_own_program(scenes, detector):
    task = Detection(**SIZES)
    model = made(task, replace(detector, num_classes=2), ("owl", "bat")).eval()
    given = entries(f"coco:{scenes}/coco.json:{scenes}/images", task)
    answers = model(given)
    for found, answer in zip(model.objective.answer(batch_of(given)), answers, strict=True):
        theirs = answer["instances"]
        height, width = theirs.image_size
        boxes = found.boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(-1)
        torch.testing.assert_close(theirs.pred_boxes.tensor, boxes[kept], atol=1e-4, rtol=0)
        assert torch.equal(theirs.scores, found.scores[kept])
        assert torch.equal(theirs.pred_classes, found.labels[kept])


@pytest.mark.parametrize("detector", [DETECTOR, TWO_STAGES], ids=["DETR", "two stages"])
def test_only_weighted_losses_are_added_up_and_the_rest_is_watched(scenes, detector):
    task = Detection(**SIZES)
    model = made(task, replace(detector, num_classes=2, dropout=0.0), ("owl", "bat")).train()
    given = entries(f"coco:{scenes}/coco.json:{scenes}/images", task, training=True)
    with EventStorage() as storage:
        losses = model(given)
        watched = set(storage.latest())
    expected = model.objective(batch_of(given))
    torch.testing.assert_close(sum(losses.values()), expected.total)
    assert all(name.startswith("loss_") for name in losses)
    assert watched == set(expected.metrics)


def test_the_same_predictions_get_the_same_figures_from_both_evaluators(scenes, tmp_path):
    spec = f"coco:{scenes}/coco.json:{scenes}/images"
    task = Detection(**SIZES)
    model = made(task, replace(DETECTOR, num_classes=2), ("owl", "bat")).eval()
    given = entries(spec, task)
    source = opened(spec)
    evaluator, batch, moved = task.evaluator(source), batch_of(given), []
    for number, one in enumerate(model.objective.answer(batch)):
        # Some answers near the truth, so that the figures are no zeros.
        truth, boxes = source[number].targets, one.boxes.clone()
        boxes[: len(truth)] = to_absolute(truth.boxes, (60, 80)) + torch.tensor([number, -1.0, 2.0, 1.0])
        moved.append(replace(one, boxes=boxes.clamp(min=0).minimum(torch.tensor([80, 60] * 2))))
    evaluator.update(moved, batch)
    answers = [model._output(found, (60, 80)) for found in moved]
    theirs = COCOEvaluator(register(spec), output_dir=str(tmp_path / "out"), use_fast_impl=False)
    theirs.reset()
    theirs.process(given, answers)
    figures, ours = theirs.evaluate()["bbox"], evaluator.results()
    assert ours["AP50"] > 0.05
    for name in ("AP", "AP50", "AP75"):
        assert figures[name] == pytest.approx(100 * ours[name], abs=1e-6)


def test_segments_are_numbered_as_detectron2_numbers_them_and_get_our_quality(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    spec = f"panoptic:{scenes}/panoptic.json:{scenes}/pngs:{scenes}/images"
    register(spec)
    task = Panoptic(**SIZES, stuff=(1,), least_score=0.0)
    detector = replace(DETECTOR, masks=True)
    model = made(task, detector, ("owl", "sky", "bat"), (1,)).eval()
    metadata = MetadataCatalog.get(spec)
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 2: 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {5: 0}
    rows = DatasetCatalog.get(spec)
    assert {one["category_id"] for one in rows[0]["annotations"]} == {0, 1}
    given = entries(spec, task)
    batch = batch_of(given)
    answers, found = model(given), model.objective.answer(batch)
    for answer, own in zip(answers, found, strict=True):
        segments, info = answer["panoptic_seg"]
        assert torch.equal(segments, own.segmentation.segments.to(torch.int32))
        labels = [{(True, 0): 0, (True, 1): 2, (False, 0): 1}[one["isthing"], one["category_id"]] for one in info]
        assert labels == own.segmentation.labels.tolist()
        assert answer["instances"].pred_masks.shape[0] == len(answer["instances"])
    stand_in_for_panopticapi()
    theirs = COCOPanopticEvaluator(spec, str(tmp_path / "out"))
    theirs.reset()
    theirs.process(given, answers)
    ours = task.evaluator(open_panoptic(spec.partition(":")[2], ImageRules(min_side=1, max_pixels=10**6), masks=True))
    ours.update(found, batch)
    assert theirs.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100 * max(0.0, ours.results()["PQ"]), abs=1e-6)


def test_training_data_are_those_of_our_own_loader(scenes, monkeypatch, tmp_path):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    spec = f"panoptic:{scenes}/panoptic.json:{scenes}/pngs:{scenes}/images"
    task = Panoptic(**SIZES, stuff=(1,), flip=0.0)
    entry = entries(spec, task, training=True)[0]
    source = open_panoptic(spec.partition(":")[2], ImageRules(min_side=1, max_pixels=10**6), masks=True)
    sample = task.views(training=True)(source[0], torch.Generator())
    assert torch.equal(entry["image"], sample.image)
    batch = batch_of([entry])
    torch.testing.assert_close(batch.targets[0].boxes, sample.targets.boxes)
    assert torch.equal(batch.targets[0].labels, sample.targets.labels)
    assert torch.equal(batch.targets[0].masks, sample.targets.masks)


def test_colours_in_another_order_are_refused(scenes):
    setup_environment()
    setup_environment()
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (f"coco:{scenes}/coco.json:{scenes}/images",)
    cfg.MODEL.SSLDET.RECIPE = "detection/tiny"
    with pytest.raises(Exception, match=r"(?s)INPUT.FORMAT: BGR.*set INPUT.FORMAT RGB.*MODEL.PIXEL_STD"):
        SSLDet(cfg)


def test_the_whole_road_in_a_lazy_configuration(scenes, tmp_path):
    spec = f"coco:{scenes}/coco.json:{scenes}/images"
    same = {"recipe": "detection/tiny", "train": [spec], "set": ["task.flip=0"]}
    model = lazy.build_model(**same).eval()
    loader = lazy.test_loader(test=spec, num_workers=0, batch_size=2, **same)
    figures = inference_on_dataset(model, loader, lazy.evaluator(test=spec, output_dir=str(tmp_path), **same))
    assert 0 <= figures["bbox"]["AP"] <= 100
    batch = next(iter(lazy.train_loader(fraction=0.5, seed=0, total_batch_size=2, num_workers=0, **same)))
    assert len(batch) == 2
    optimizer = lazy.optimizer_of(params={"model": model}, lr=1e-3, max_norm=0.1, betas=(0.8, 0.9))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def test_a_deformable_detr_goes_from_its_file_into_a_lazy_configuration_and_back(scenes, tmp_path):
    spec = f"coco:{scenes}/coco.json:{scenes}/images"
    config = replace(TWO_STAGES, num_classes=2)
    ours = Detection(**SIZES).objective(config.build()).eval()
    info = {"task": to_document(Detection(**SIZES)), "detector": to_document(config), "classes": ["owl", "bat"]}
    for name in ("model.safetensors", "again.pth"):
        report = export(ours, info, tmp_path / name)
        assert (report.equal, report.difference) == (report.tensors, 0.0)
    same = {"recipe": "detection/tiny", "train": [spec], "set": ["task.flip=0"]}
    model = lazy.build_model(weights=str(tmp_path / "again.pth"), output=str(tmp_path / "out"), **same).eval()
    DetectionCheckpointer(model).load(str(tmp_path / "again.pth"))
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(model.detector(images).boxes, ours.detector(images).boxes)
    DetectionCheckpointer(model, str(tmp_path / "out")).save("model_final")
    back = open_model(tmp_path / "out" / "model_final.pth")
    assert torch.equal(back.objective.detector(images).boxes, ours.detector(images).boxes)


def test_names_of_detectron2s_own_configurations_are_accepted(scenes):
    spec = f"coco:{scenes}/coco.json:{scenes}/images"
    cfg = OmegaConf.create(lazy.configuration("detection/tiny", train=[spec], test=spec, images=4), flags=ALLOWED)
    typed = ["dataloader.train.num_workers=0", "dataloader.train.total_batch_size=3", "dataloader.test.num_workers=0"]
    typed += ["dataloader.train.aspect_ratio_grouping=false", "optimizer.weight_decay=0.5", "train.max_iter=7"]
    cfg = LazyConfig.apply_overrides(cfg, typed)
    assert len(next(iter(instantiate(cfg.dataloader.train)))) == 3
    assert len(list(instantiate(cfg.dataloader.test))) == 4
    cfg.optimizer.params.model = instantiate(cfg.model)
    assert instantiate(cfg.optimizer).defaults["weight_decay"] == 0.5
    cfg.model.recipe = "detection/voc-tiny"
    with pytest.raises(Exception, match=r"data\.recipe: detection/voc-tiny, but .* those of detection/tiny"):
        instantiate(cfg.model)


@pytest.mark.parametrize("warmup", [0, 1, 50])
@pytest.mark.parametrize("kind", ["step", "cosine", "constant"])
def test_rates_are_ours_in_each_step(kind, warmup):
    optim = OptimConfig(schedule=kind, drops=(0.5, 0.8), warmup_steps=warmup)
    theirs, ours = instantiate(OmegaConf.create(lazy.multiplier(optim, 400), flags=ALLOWED)), schedule(optim, 400)
    # After a warm-up, detectron2's cosine is one step ahead.
    allowed = 1.6 / (400 - warmup) if (kind == "cosine" and warmup > 0) else 1e-9
    worst = max(abs(theirs(step / 400) - ours(step)) for step in range(400))
    assert worst <= allowed


def test_a_recipe_that_its_trainers_cannot_follow_is_refused(scenes, monkeypatch):
    run = resolve("detection/tiny")
    other = replace(run, optim=replace(run.optim, ema=0.99, accumulate=2))
    monkeypatch.setattr(lazy, "resolve", lambda recipe: other)
    with pytest.raises(ConfigError) as told:
        lazy.configuration("detection/tiny", train=["coco:a.json:b"], test="coco:a.json:b", images=4)
    assert "optim.ema: 0.99" in str(told.value)
    assert "optim.accumulate: 2" in str(told.value)


def test_the_optimiser_follows_solver_and_says_where_the_recipe_differs(scenes, caplog):
    setup_environment()
    cfg = get_cfg()
    cfg.merge_from_file(str(path_of("tiny.yaml")))
    cfg.DATASETS.TRAIN = (f"coco:{scenes}/coco.json:{scenes}/images",)
    model = made(Detection(**SIZES), DETECTOR, ("a", "b", "c"))
    assert environment._optimizer(cfg, model).max_norm == 1.0
    assert "SOLVER decides" not in caplog.text
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    assert environment._optimizer(cfg, model).max_norm == 0.0
    assert "SOLVER.LR_SCHEDULER_NAME is WarmupMultiStepLR, in the recipe WarmupCosineLR" in caplog.text
    cfg.SOLVER.CLIP_GRADIENTS = type(cfg)({"ENABLED": True, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0})
    with pytest.raises(ConfigError, match=r"SOLVER\.CLIP_GRADIENTS: value .* set CLIP_TYPE full_model"):
        environment._optimizer(cfg, model)


def test_clipping_off_leaves_gradients_alone():
    weight = torch.nn.Parameter(torch.zeros(2))
    for limit, expected in ((0.0, 5.0), (1.0, 1.0)):
        weight.grad = torch.tensor([3.0, 4.0])
        ClippedAdamW([weight], max_norm=limit, lr=0.0).step()
        assert float(weight.grad.norm()) == pytest.approx(expected, abs=1e-5)


def test_a_backbone_is_one_module_with_the_names_of_its_library():
    network = backbone.SSLDetBackbone(build_backbone(BackboneConfig(name="resnet18")), ["res3", "res5"])
    assert all(name.startswith("body.") for name in network.state_dict())
    again = copy.deepcopy(network)
    assert again.network.body is again.body
    levels = again.eval()(torch.zeros(1, 3, 64, 96))
    assert {name: level.shape[-2:] for name, level in levels.items()} == {"res3": (8, 12), "res5": (2, 3)}
