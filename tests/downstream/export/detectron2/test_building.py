import json

import pytest
import yaml

from downstream.export.detectron2.building import blueprint, read_sidecar
from downstream.export.detectron2.verbs import names, path_of
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError, ConfigError
from ssldet.recipe import to_document

CLASSES = ("owl", "bat", "sky")


def beside(path, detector, task=None):
    stated = {"DETECTOR": json.dumps(to_document(detector)), "TASK": json.dumps(task or {"name": "detection"})}
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"MODEL": {"SSLDET": stated}}))
    return str(path)


def test_without_weights_the_recipes_detector_learns_the_classes_of_the_data():
    plan = blueprint("detection/tiny", CLASSES, overrides={"detector.num_queries": "7"})
    assert (plan.detector.num_classes, plan.detector.num_queries, plan.detector.pre_norm) == (3, 7, True)
    assert plan.detector.backbone.weights is None


def test_what_shapes_the_detector_comes_from_the_file(tmp_path):
    given = DETRConfig(width=48, heads=4, num_queries=11, pre_norm=False, num_classes=91, encoder_layers=1)
    plan = blueprint("detection/tiny", CLASSES, weights=beside(tmp_path / "a.pth", given) + "?matching_heuristics=True")
    detector = plan.detector
    assert (detector.width, detector.num_queries, detector.pre_norm, detector.encoder_layers) == (48, 11, False, 1)
    assert detector.num_classes == 3


def test_a_one_shot_task_asks_for_one_class_and_inherits_how_patches_were_normalised(tmp_path):
    task = {"name": "random_query_patch", "normalise_patches": True}
    weights = beside(tmp_path / "a.pth", DETRConfig(num_classes=2), task)
    plan = blueprint("one_shot/tiny", CLASSES, weights=weights, overrides={"task.unseen": "bat"})
    assert (plan.detector.num_classes, plan.task.normalise_patches, plan.task.unseen) == (1, True, ("bat",))


def test_a_panoptic_task_knows_stuff_and_gets_a_mask_head():
    plan = blueprint("panoptic/tiny", CLASSES, stuff=(2,))
    assert plan.task.stuff == (2,)
    assert plan.detector.masks


def test_a_damaged_sidecar_a_missing_one_and_data_without_classes_are_told(tmp_path, caplog):
    (tmp_path / "a.yaml").write_text("MODEL: {SSLDET: {}}")
    with pytest.raises(CheckpointError, match=r"a\.yaml: does not say which detector a\.pth holds"):
        read_sidecar(str(tmp_path / "a.pth"))
    assert read_sidecar(str(tmp_path / "b.pth")) == {}
    assert "b.yaml beside it, so the recipe's own detector is built" in caplog.text
    with pytest.raises(ConfigError, match="the dataset names no classes"):
        blueprint("detection/tiny", ())


def test_every_configuration_has_a_path_and_a_wrong_name_a_suggestion():
    assert {"voc", "coco", "coco_1percent", "one_shot_voc", "panoptic", "tiny", "r50.yaml", "tiny.yaml"} <= set(names())
    assert all(path_of(name).is_file() for name in names())
    with pytest.raises(ConfigError, match=r"no configuration 'panoptik' \(did you mean 'panoptic'\?\)"):
        path_of("panoptik")


def test_yaml_configurations_build_on_files_that_are_there():
    for name in names():
        if name.endswith(".yaml"):
            path = path_of(name)
            document = yaml.safe_load(path.read_text())
            assert path.with_name(document.get("_BASE_", name)).is_file()
