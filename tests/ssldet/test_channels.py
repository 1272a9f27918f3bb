"""Images of other channels than three go from files of 16 bits to exported detectors, and nothing of them is lost."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssldet
from downstream.detection import Detection
from ssldet.data.images import ImageRules, image_sizes, is_turned, read_image
from ssldet.data.photometric import Jitter, apply_jitter, draw_jitter
from ssldet.engine.run import Run
from ssldet.errors import CheckpointError, ConfigError, UnreadableError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.nn.backbones.stem import for_channels, statistics
from ssldet.recipe import load
from ssldet.report.bands import seen
from ssldet.verbs.formats import formats_of
from ssldet.weights.backbone import load_backbone
from tests.models import TINY_DETR

tifffile = pytest.importorskip("tifffile")
FIVE = ImageRules(channels=5)


def bands(seed: int, size: tuple[int, int] = (70, 90)) -> np.ndarray:
    """Five bands of twelve bits in sixteen."""
    return np.random.default_rng(seed).integers(0, 4096, (5, *size), dtype=np.uint16)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled images of five bands."""
    folder = tmp_path_factory.mktemp("scenes")
    images, annotations = [], []
    for number in range(8):
        tifffile.imwrite(folder / f"{number}.tif", bands(number), planarconfig="separate", photometric="minisblack")
        images.append({"id": number, "file_name": f"{number}.tif", "height": 70, "width": 90})
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": number + 1, "image_id": number, **box})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "field"}]}
    (folder / "labels.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("layout", ["planes", "interleaved", "pages", "npy", "npy-last"])
def test_sixteen_bits_are_kept_whatever_the_layout(tmp_path: Path, layout: str) -> None:
    values, path = bands(1), tmp_path / ("image.npy" if layout.startswith("npy") else "image.tif")
    if layout == "planes":
        tifffile.imwrite(path, values, planarconfig="separate", photometric="minisblack")
    elif layout == "interleaved":
        tifffile.imwrite(path, values.transpose(1, 2, 0), planarconfig="contig", photometric="minisblack")
    elif layout == "pages":
        tifffile.imwrite(path, values, photometric="minisblack")
    else:
        np.save(path, values if layout == "npy" else values.transpose(1, 2, 0))
    image = read_image(path, FIVE)
    assert image.shape == (5, 70, 90)
    assert torch.equal((image * 65_535).round().int(), torch.from_numpy(values.astype(np.int32)))
    assert image_sizes(tmp_path, [path.name], FIVE) == [(70, 90)]


def test_one_channel_comes_from_ordinary_files_too(tmp_path: Path) -> None:
    grey = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png", ImageRules(channels=1))
    assert torch.equal((image[0] * 65_535).round().int(), torch.from_numpy(grey.astype(np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_one_channel_is_turned_upright_as_three_are(tmp_path: Path, ending: str, orientation: int) -> None:
    grey = Image.fromarray(bands(3)[0, :24, :40].astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if ending == "tif":
        grey.save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    else:
        grey.save(tmp_path / f"a.{ending}", exif=exif)
    one, three = (ImageRules(channels=channels) for channels in (1, 3))
    sizes = [image_sizes(tmp_path, [f"a.{ending}"], rules) for rules in (one, three)]
    assert sizes[0] == sizes[1] == [(40, 24) if orientation > 4 else (24, 40)]
    path = tmp_path / f"a.{ending}"
    assert is_turned(path, one) == is_turned(path, three) == (orientation > 4)
    colours = read_image(path, three)
    assert torch.equal((255 * read_image(path, one)).round().byte().expand(3, -1, -1), colours)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "four.tif", bands(1)[:4], photometric="minisblack")
    tifffile.imwrite(tmp_path / "float.tif", bands(1).astype(np.float32), photometric="minisblack")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "four.tif").read_bytes()[:100])
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    reasons = {"four.tif": "4-channels", "float.tif": "float-image", "cut.tif": "damaged", "code.npy": "damaged"}
    for name, reason in reasons.items():
        with pytest.raises(UnreadableError, match=reason):
            read_image(tmp_path / name, FIVE)


def test_a_first_convolution_answers_equal_channels_as_it_did() -> None:
    weight = torch.randn(4, 3, 3, 3)
    grey = torch.rand(1, 1, 8, 8)
    ours = torch.conv2d(grey.expand(-1, 3, -1, -1), weight)
    assert torch.allclose(torch.conv2d(grey, for_channels(weight, 1)), ours, atol=1e-5)
    assert torch.allclose(torch.conv2d(grey.expand(-1, 6, -1, -1), for_channels(weight, 6)), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_backbones_of_every_library_take_five_channels_and_weights_for_three(name: str, tmp_path: Path) -> None:
    three = build_backbone(BackboneConfig(name=name, frozen_stages=0))
    torch.save(three.body.state_dict(), tmp_path / "three.pth")
    five = build_backbone(BackboneConfig(name=name, channels=5, mean=(0.1,) * 5, std=(0.2,) * 5, frozen_stages=0))
    report = load_backbone(five, str(tmp_path / "three.pth"))
    assert len(report.misshapen) == len(report.fresh) == 0
    assert torch.equal(five.body.state_dict()[five.stem], for_channels(three.body.state_dict()[five.stem], 5))
    pixels = torch.rand(1, 5, 64, 64)
    assert torch.allclose(five.normalise(pixels), (pixels - 0.1) / 0.2)
    assert five(five.normalise(pixels)).shape == three(torch.rand(1, 3, 64, 64)).shape


def test_statistics_are_those_of_all_pixels() -> None:
    images = [torch.rand(2, 5, 6), torch.rand(2, 9, 3)]
    every = torch.cat([image.flatten(1) for image in images], 1)
    mean, std = statistics(images)
    assert mean == pytest.approx(every.mean(1).tolist(), abs=1e-5)
    assert std == pytest.approx(every.std(1, correction=0).tolist(), abs=1e-5)


def test_jitter_leaves_colours_alone_where_there_are_none(generator: torch.Generator) -> None:
    pixels = torch.rand(3, 5, 8, 8)
    colours = Jitter(brightness=0.0, contrast=0.0, saturation=1.0, hue=0.5, grey=1.0, blur=0.0, probability=1.0)
    assert torch.allclose(apply_jitter(pixels, draw_jitter(3, colours, generator)), pixels, atol=1e-6)
    light = replace(colours, brightness=1.0, saturation=0.0, hue=0.0, grey=0.0)
    assert not torch.allclose(apply_jitter(pixels, draw_jitter(3, light, generator)), pixels, atol=1e-2)


def test_pictures_show_the_chosen_bands() -> None:
    image = torch.zeros(5, 4, 4)
    image[4, :, :2] = 0.01
    assert seen(image, (5,))[:, 0, 0].tolist() == [255, 255, 255]
    assert seen(image, (5, 1, 1))[:, 0, 0].tolist() == [255, 0, 0]
    assert seen(image[:2]).shape == (3, 4, 4)
    with pytest.raises(ConfigError, match="from 1 to 5"):
        seen(image, (6,))


def test_formats_for_rgb_say_so_before_the_run(tmp_path: Path) -> None:
    config = replace(TINY_DETR, backbone=replace(TINY_DETR.backbone, channels=5, mean=(), std=()))
    formats = formats_of(config.build(), config)
    assert not formats.reasons["safetensors"]
    assert not formats.reasons["onnx"]
    any_channels = {"safetensors", "onnx", "onnx-int8", "openvino"}
    assert any_channels < formats.reasons.keys()
    assert all(why for name, why in formats.reasons.items() if name not in any_channels)
    with pytest.raises(CheckpointError, match="images have 5 channels, and this format is for RGB"):
        ssldet_export_detr(config, tmp_path)


def ssldet_export_detr(config, folder: Path) -> None:
    from downstream.export.detr import export

    export(Detection().objective(config.build()), {}, folder / "model.pth")


def test_a_task_that_needs_colours_refuses(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.channels: SwAV looks at red, green and blue"):
        ssldet.pretrain(scenes, recipe="swav/tiny", steps=1, out=tmp_path / "run", overrides={"data.channels": 5})


def test_five_bands_go_all_the_way(scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ssldet")
    five = {"data.channels": 5, "data.workers": 0, "data.batch_size": 4}
    pretrained = ssldet.pretrain(
        scenes, recipe="random_query_patch/tiny", steps=2, out=tmp_path / "pre", overrides=five
    )
    assert "the first convolution of tiny takes them" in caplog.text
    assert "pixels are normalised by mean 0.03" in caplog.text
    run = load(Run, tmp_path / "pre" / "run.toml")
    assert (run.detector.backbone.channels, len(run.detector.backbone.mean)) == (5, 5)
    labels = f"coco:{scenes}/labels.json:{scenes}"
    tuned = pretrained.finetune(
        labels,
        recipe="detection/tiny",
        steps=2,
        out=tmp_path / "fine",
        overrides={"data.workers": 0, "data.batch_size": 4},
    )
    assert load(Run, tmp_path / "fine" / "run.toml").data.channels == 5
    assert "AP" in ssldet.evaluate(tuned.path, labels, workers=0)
    found = ssldet.predict(
        tuned.path, str(scenes), out=tmp_path / "found", bands=(5, 3, 1), save_crops=True, threshold=0.0
    )
    assert found["images"] == 8
    with Image.open(tmp_path / "found" / "0.tif.png") as picture:
        assert picture.mode == "RGB"
    with pytest.raises(ConfigError, match="from 1 to 5"):
        ssldet.predict(tuned.path, str(scenes), out=tmp_path / "none", bands=(9,))
    ssldet.export(tuned.path, to="safetensors", out=tmp_path / "model.safetensors")
    assert ssldet.load(tmp_path / "model.safetensors").in_channels == 5
    patch = scenes / "1.tif"
    assert ssldet.predict(pretrained.path, str(scenes), query=str(patch), out=tmp_path / "patches")["images"] == 8
