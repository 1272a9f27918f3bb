import re

import pytest

from ssldet import catalogue
from ssldet.errors import CheckpointError
from ssldet.weights.zoo import known_detectors, known_weights, zoo


def test_every_entry_is_whole_and_alone():
    entries = zoo().entries
    for field in ("name", "address", "file"):
        assert len({getattr(entry, field) for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.address.startswith("https://")
        assert "/" not in entry.file
        assert entry.licence
        assert re.fullmatch(r"((sha256|md5):[0-9a-f]{8,64})?", entry.digest)
        assert entry.name.startswith(f"{entry.architecture}.") or entry.name in known_detectors()


def test_the_table_is_listed():
    table = catalogue.list_names("weights")
    shown = str(table)
    assert re.search(r"^resnet50\.swav +75\.3 linear top-1 +CC-BY-NC-4\.0 +Caron", shown, re.MULTILINE)
    assert "detr-r50-dc5 " in shown
    assert {"name", "address", "licence", "digest", "score"} <= set(table.to_json()[0])


@pytest.mark.parametrize(
    ("name", "architecture", "full"),
    [
        ("swav", "resnet50", "resnet50.swav"),
        ("swav", "timm/resnet50", "resnet50.swav"),
        ("resnet50.swav", None, "resnet50.swav"),
        ("imagenet", "torchvision/resnet18", "resnet18.imagenet"),
        ("dino", "vit_small_patch16_224", "vit_small_patch16_224.dino"),
        ("a1_in1k", "timm/resnet50", "resnet50.a1_in1k"),
        ("convnext_tiny.fb_in1k", None, "convnext_tiny.fb_in1k"),
        ("detr-r50", "resnet50", "detr-r50"),
    ],
)
def test_names(name, architecture, full):
    assert known_weights(name, architecture).name == full


def test_hashes_are_those_in_the_names_of_the_files():
    found = known_weights("imagenet", "resnet18")
    assert found.digest == f"sha256:{found.file.removesuffix('.pth').rpartition('-')[2]}"
    assert known_weights("detr-r101-dc5").digest == "sha256:a2e86def"
    assert known_weights("swav", "resnet50").digest == ""


def test_the_hub_is_asked_for_safetensors_under_a_name_of_their_own():
    found = known_weights("a1_in1k", "resnet50")
    assert found.address.endswith("/timm/resnet50.a1_in1k/resolve/main/model.safetensors")
    assert (found.file, found.licence) == ("timm_resnet50.a1_in1k.safetensors", "apache-2.0")


@pytest.mark.parametrize(
    ("name", "architecture", "words"),
    [
        ("swav", "resnet18", "fits resnet50 only, not resnet18"),
        ("swav", None, "not this backbone"),
        ("imagnet", "resnet50", "did you mean 'imagenet'"),
        ("detr-r5", None, "did you mean 'detr-r50'"),
        ("nothing_like_it", "timm/resnet50", "see 'ssldet list weights', or name a file"),
    ],
)
def test_names_that_lead_nowhere(name, architecture, words):
    with pytest.raises(CheckpointError, match=words):
        known_weights(name, architecture)
