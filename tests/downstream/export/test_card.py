"""A model card tells what a model is, how it came to be, and what one owes to whom."""

from downstream.detection import Detection
from downstream.export.card import model_card
from downstream.export.proof import ExportReport
from ssldet.citations import citation
from ssldet.detectors.detr import DETRConfig
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document

TINY = DETRConfig(backbone=BackboneConfig(name="tiny"), num_classes=2, num_queries=6, width=8, heads=2, feedforward=8)
STATED = {
    "task": to_document(Detection()),
    "detector": to_document(TINY),
    "classes": ["cat", "<b>dog</b>"],
    "step": 1200,
    "recipe": "abc123",
    "data": "d4ta",
    "images": 5011,
    "choices": {"optim": {"lr": 0.0001}},
}
PRETRAINED = {
    "task": {"name": "random_query_patch", "num_patches": 10},
    "detector": {"name": "detr", "backbone": {"name": "resnet50", "weights": "swav"}},
    "step": 60_000,
    "recipe": "fed987",
    "data": "0ther",
    "images": 1_281_167,
    "choices": {},
}


def card_of(info, tmp_path):
    report = ExportReport(out=tmp_path / "x.bin", equal=3, tensors=3, parameters=40, difference=0.0, size=2_000_000)
    return model_card(Detection().objective(TINY.build()), info, "Load it.")(report)


def test_a_card_tells_both_stages_their_licences_and_citations(tmp_path):
    text = card_of(STATED | {"lineage": [PRETRAINED]}, tmp_path)
    assert text.startswith("---\nlibrary_name: ssldet\n")
    assert "1. random_query_patch, 60,000 steps on 1,281,167 images (data fingerprint `0ther`" in text
    assert "2. detection, 1,200 steps on 5,011 images (data fingerprint `d4ta`, recipe fingerprint `abc123`)" in text
    assert "lr = 0.0001" in text
    assert "backbone weights `resnet50.swav` (CC-BY-NC-4.0)." in text
    assert "3/3 tensors, 40 parameters, max |Δ| 0.0e+00" in text
    assert text.count("@inproceedings{carion2020detr") == text.count("@inproceedings{dai2021updetr") == 1
    assert str(tmp_path) not in text


def test_a_card_of_a_foreign_file_says_that_nothing_is_known(tmp_path):
    info = {"task": to_document(Detection()), "detector": to_document(TINY), "classes": []}
    text = card_of(info, tmp_path)
    assert "It was read from a file that does not say how it was trained" in text
    assert "Classes: none named" in text


def test_citations_are_whole_entries():
    assert citation("carion2020detr").startswith("@inproceedings{carion2020detr,\n  title")
    assert citation("carion2020detr").endswith("\n}")
    assert citation("nobody") == ""
