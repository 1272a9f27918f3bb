"""Folders of transformers, good and bad, without transformers; that package's own word is in the exporter's tests."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from downstream.detection import Detection
from downstream.export import huggingface as exporter
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from ssldet.weights.coco import coco_numbering
from ssldet.weights.huggingface import detector_from_folder
from ssldet.weights.huggingface_names import from_huggingface, to_huggingface
from ssldet.weights.image_processor import Processor
from tests.models import SMALL_DETR

CONFIG = replace(SMALL_DETR, num_classes=3, num_queries=5, heads=3, feedforward=20, dropout=0.2, pre_norm=False)
Q_PROJ = "model.decoder.layers.1.encoder_attn.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("transformers") / "model"
    info = {"detector": to_document(CONFIG), "task": to_document(Detection()), "classes": ["cat", "dog", "owl"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter.importlib.util, "find_spec", lambda _: None)
        exporter.export(Detection().objective(CONFIG.build()), info, out)
    return out


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def change(file, **entries):
    document = json.loads(file.read_text())
    for name, value in entries.items():
        document[name] = value
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def rewrite(folder, changed):
    state = load_file(folder / "model.safetensors")
    save_file(changed(state), folder / "model.safetensors")


def same(one, other):
    own = one.detector.state_dict()
    return all(torch.equal(value, own[name]) for name, value in other.detector.state_dict().items())


def test_what_a_folder_says(folder):
    found = detector_from_folder(folder)
    assert found.config == CONFIG
    assert found.classes == ("cat", "dog", "owl")
    assert found.processor == Processor(short_side=800, long_side=1333)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_all_four_ways_to_keep_weights(folder, original, name, pieces):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save = save_file if name == "model.safetensors" else torch.save
    if pieces == 1:
        save(state, folder / name)
    else:
        names = [f"{number}-{name}" for number in range(pieces)]
        place = {key: names[number % pieces] for number, key in enumerate(state)}
        for piece in names:
            save({key: value for key, value in state.items() if place[key] == piece}, folder / piece)
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    assert same(detector_from_folder(folder), detector_from_folder(original))


def test_entries_that_transformers_leaves_out_mean_what_it_means(folder):
    gone = {"dropout", "num_channels", "activation_function", "position_embedding_type", "dilation", "id2label"}
    change(folder / "config.json", **dict.fromkeys(gone))
    (folder / "preprocessor_config.json").unlink()
    found = detector_from_folder(folder)
    assert (found.config.dropout, found.classes) == (0.1, ())


def test_names_that_nobody_chose_are_none_and_numbers_without_a_class_stay_empty(folder):
    change(folder / "config.json", id2label={str(number): f"LABEL_{number}" for number in range(3)})
    assert detector_from_folder(folder).classes == ()
    change(folder / "config.json", id2label={"1": "dog", "0": "N/A", "2": "owl"})
    assert detector_from_folder(folder).classes == ("", "dog", "owl")


def test_old_sizes_and_counters_and_half_precision(folder, original):
    change(folder / "preprocessor_config.json", size=320, max_size=640)
    counter = {"model.backbone.conv_encoder.model.layer2.0.downsample.1.num_batches_tracked": torch.tensor(0)}
    rewrite(folder, lambda state: {name: value.half() for name, value in state.items()} | counter)
    found = detector_from_folder(folder)
    assert found.processor == Processor(short_side=320, long_side=640)
    for one, other in zip(
        found.detector.parameters(), detector_from_folder(original).detector.parameters(), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_folder_with_the_classes_of_coco_opens_with_their_ids(folder):
    names, ids = coco_numbering(91)
    rewrite(
        folder,
        lambda state: (
            state
            | {
                "class_labels_classifier.weight": torch.randn(92, 24),
                "class_labels_classifier.bias": torch.randn(92),
            }
        ),
    )
    change(folder / "config.json", id2label={str(number): name or "N/A" for number, name in enumerate(names)})
    change(folder / "preprocessor_config.json", size={"shortest_edge": 200, "longest_edge": 300})
    opened = open_model(folder)
    assert opened.classes == names
    assert opened.info["category_ids"] == list(ids)
    assert opened.task == Detection(eval_scale=200, max_size=300, eval_rule="transformers", scales=(200,))
    assert not opened.objective.training


@pytest.mark.parametrize("masks", [False, True])
def test_renaming_loses_nothing_either_way(masks):
    config = {"masks": True, "mask_attention": "joint"} if masks else {"pre_norm": True}
    with torch.device("meta"):
        state = DETRConfig(num_classes=3, **config).build().state_dict()
    theirs = to_huggingface(state)
    # Each of 18 attentions has three matrices and three biases instead of one.
    assert len(theirs) == len(state) + 18 * 4
    assert all(name.startswith(("detr.", "bbox_attention.", "mask_head.")) for name in theirs) is masks
    back = from_huggingface(theirs, "here")
    assert back.keys() == {f"detector.{name}" for name in state}
    assert all(back[f"detector.{name}"].shape == value.shape for name, value in state.items())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"architectures": ["ConditionalDetrForObjectDetection"]},
            "holds ConditionalDetrForObjectDetection, which",
        ),
        ({"architectures": ["DetrModel"]}, "holds DetrModel, which is no DETR of ours"),
        ({"architectures": None, "model_type": "bert"}, "holds a 'bert'"),
        ({"activation_function": "gelu", "position_embedding_type": "learned"}, "activation_function='gelu'.*; pos"),
        ({"decoder_attention_heads": 4}, "must be one positive number"),
        ({"dropout": "much"}, "dropout='much' must lie"),
        ({"backbone_config": {"model_type": "swin"}}, "its backbone is a 'swin'"),
        ({"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}}, "makes another network"),
        ({"d_model": 256, "encoder_layers": 6}, "d_model=256, the tensors 24; encoder_layers=6, the tensors 1"),
        ({"architectures": ["DetrForSegmentation"]}, "DetrForSegmentation, the tensors DetrForObjectDetection"),
        ({"id2label": {"0": "cat"}}, "id2label names 1 classes, the class head has 3"),
        ({"id2label": {"0": "cat", "1": "dog", "3": "owl"}}, "id2label"),
        ({"backbone": "resnet34"}, "does not fit the detector it looks like"),
        ({"backbone": "resnet_of_mine"}, "no backbone 'timm/resnet_of_mine'"),
    ],
)
def test_configurations_that_are_not_ours(folder, entries, message):
    change(folder / "config.json", **entries)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_configuration(folder):
    (folder / "config.json").unlink()


def broken_configuration(folder):
    (folder / "config.json").write_text('{"model_type": "detr"')


def a_list(folder):
    (folder / "config.json").write_text("[]")


def matrix_missing(folder):
    rewrite(folder, lambda state: {name: value for name, value in state.items() if name != Q_PROJ})


def matrix_misshapen(folder):
    rewrite(folder, lambda state: state | {Q_PROJ: torch.zeros(3, 24)})


def strange_tensor(folder):
    rewrite(folder, lambda state: state | {"model.level_embed": torch.zeros(3)})


def layer_missing(folder):
    rewrite(folder, lambda state: {name: value for name, value in state.items() if ".fc2.bias" not in name})


def not_a_number(folder):
    rewrite(folder, lambda state: state | {"class_labels_classifier.bias": torch.full((4,), torch.nan)})


def elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"weight_map": {"class_labels_classifier.bias": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other_pixels(folder):
    change(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])


def no_size(folder):
    change(folder / "preprocessor_config.json", size={"shortest_edge": "wide"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.safetensors: is cut off or damaged"),
        (no_weights, "has config.json but no model.safetensors or pytorch_model.bin"),
        (no_configuration, "neither a run folder .* nor known .* folders of Hugging Face transformers"),
        (broken_configuration, "config.json: can't be read"),
        (a_list, "config.json: is no JSON object"),
        (matrix_missing, re.escape("multihead_attn.in_proj_weight can't be joined from ['k', 'v']_proj")),
        (matrix_misshapen, "in_proj_weight can't be joined"),
        (strange_tensor, "1 tensors are no DETR's, such as 'model.level_embed'"),
        (layer_missing, r"(\w+coder\.layers\.[01]\.linear2\.bias is missing; ){3}is the file whole"),
        (not_a_number, "class_head.bias is not finite"),
        (elsewhere, "lists no files of its own folder"),
        (other_pixels, "image_mean is"),
        (no_size, "whose shortest_edge must be from 8 to 10000 pixels"),
    ],
)
def test_folders_that_are_not_whole(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_malicious_file_runs_nothing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"model.input_projection.bias": Evil(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="run code"):
        open_model(folder)
    assert not (tmp_path / "canary").exists()
