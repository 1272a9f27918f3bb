"""What lists show."""

from importlib.metadata import entry_points

import pytest

from ssldet.catalogue import GROUP_OF, MOST_MEASURED, BackboneTable, NameTable, RecipeTable, list_names
from ssldet.data.own_transform import transform_named
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import ConfigError
from ssldet.registry import find, names


def table(pattern: str | None) -> BackboneTable:
    found = list_names("backbones", pattern)
    assert isinstance(found, BackboneTable)
    return found


def test_without_a_pattern_there_is_one_row_a_family_with_all_columns() -> None:
    rows = table(None).to_json()
    assert len(rows) >= 20
    assert all({"name", "channels", "strides", "millions", "licence"} <= set(row) for row in rows)
    licences = {row["name"]: row["licence"] for row in rows}
    assert licences["torchvision/resnet18"] == "bsd-3-clause"
    assert licences["timm/convnext_atto"] == "apache-2.0"


def test_few_matches_are_measured_and_many_only_named() -> None:
    few = table("timm/resnet10t*")
    assert few.to_json() == [
        {"name": "timm/resnet10t", "channels": (64, 128, 256, 512), "strides": (4, 8, 16, 32), "millions": 4.9,
         "licence": "apache-2.0"}
    ]  # fmt: skip
    header, row, _ = str(few).splitlines()
    assert row.index("4 8 16 32") == header.index("strides")
    many = table("vit_*")
    assert len(many.to_json()) > MOST_MEASURED
    assert all(set(row) == {"name"} for row in many.to_json())


def test_what_can_not_serve_is_listed_with_its_reason() -> None:
    shown = str(table("hiera_tiny_224"))
    assert "timm/hiera_tiny_224  refused: " in shown
    assert "one image size" in shown


def test_a_pattern_without_matches_suggests_a_name() -> None:
    with pytest.raises(ConfigError, match=r"no backbone fits 'resnt50'.*did you mean 'resnet50'"):
        table("resnt50")


@pytest.mark.parametrize("what", GROUP_OF)
def test_every_name_has_a_line_on_what_it_stands_for(what: str) -> None:
    found = list_names(what)
    assert isinstance(found, NameTable | RecipeTable)
    rows = {row["name"]: row["about"] for row in found.to_json()}
    assert list(rows) == names(GROUP_OF[what])
    assert all(about and "\n" not in about for about in rows.values())
    meant = {entry.name: entry.value for entry in entry_points(group=GROUP_OF[what])}
    lines = {meant[name]: about for name, about in rows.items()}
    assert len(set(lines.values())) == len(lines), "different things have the same line"
    assert all(about in str(found) for about in rows.values())


def test_a_line_is_that_of_the_class_the_function_or_else_the_module() -> None:
    assert list_names("detectors", "detr").to_json() == [
        {"name": "detr", "about": (DETRConfig.__doc__ or "").splitlines()[0]}
    ]
    assert "Write a detector as an ONNX graph" in str(list_names("exporters", "onnx"))
    assert "its header" in str(list_names("importers", "safetensors"))


def test_other_lists_take_patterns_too() -> None:
    assert [row["name"] for row in list_names("tasks", "random_*").to_json()] == ["random_query_patch"]
    with pytest.raises(ConfigError, match=r"no detector fits 'deter' \(did you mean 'detr'"):
        list_names("detectors", "deter")


def test_recipes_say_what_they_need_and_their_docstrings_tell_the_truth() -> None:
    table = list_names("recipes")
    assert isinstance(table, RecipeTable)
    for row in table.to_json():
        task = find("ssldet.recipes", row["name"])().task
        sides = getattr(task, "image_sides", None) or getattr(task, "scales", None) or (task.eval_side,)
        ends = f"{min(sides)}\N{EN DASH}{max(sides)} px" if len(set(sides)) > 1 else f"{max(sides)} px"
        assert row["pixels"] == ends, row["name"]
        assert row["device"] in {"CPU", "GPUs"}, row["name"]
        assert row["about"], row["name"]
    assert "half an hour" in str(list_names("recipes", "detection/small"))


def test_augmentations_are_those_that_can_be_named_and_change_images_with_boxes() -> None:
    rows = {row["name"]: row["about"] for row in list_names("augmentations").to_json()}
    assert list(rows)[:3] == ["detr", "scale_jitter", "none"]
    library = {name.partition(":")[2] for name in rows if ":" in name}
    assert {"RandomHorizontalFlip", "RandomPhotometricDistort", "RandomIoUCrop"} <= library
    assert not {"Identity", "AutoAugment", "Grayscale", "ToTensor", "ColorJitter"} & library
    assert all(about.endswith(".") and "\n" not in about for about in rows.values())
    for name in rows:
        if ":" in name:
            assert transform_named(name, ()).name == name
    (one,) = list_names("augmentations", "*:RandomVertical*").to_json()
    assert one["about"] == "Vertically flip the input with a given probability."
    with pytest.raises(ConfigError, match=r"no augmentation fits 'detrr' \(did you mean 'detr'"):
        list_names("augmentations", "detrr")
