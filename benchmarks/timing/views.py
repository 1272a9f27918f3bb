"""a photograph -> the tensors of one pretraining step: ours, and the plain way through Pillow and torchvision.

The plain way is how the first implementations wrote it: the image is opened, each patch is cropped, resized, jittered,
made a tensor and normalised by itself. Ours decodes and cuts in a worker, and jitters and normalises patches together.
Both run on one core, inside a worker of a loader.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks.timing.clock import Ratio, compared
from benchmarks.timing.turns import Worker, in_workers
from pretext.random_query_patch import RandomQueryPatch
from ssldet.data.collate import collate
from ssldet.data.images import open_images, read_image, unlabelled
from ssldet.data.judging import ImageRules
from ssldet.data.memory import keep_freed_memory
from ssldet.data.photometric import Jitter
from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone
from ssldet.nn.backbones.network import IMAGENET_MEAN, IMAGENET_STD
from ssldet.patches import Patches, in_one_row

WITHOUT = Jitter(probability=0.0, grey=0.0, blur=0.0)
PHOTOS = 6


def write_photos(folder: Path) -> list[Path]:
    """Write generated photographs of 640 x 480 pixels: soft colours, noise, JPEG of quality 90.

    Args:
        folder: An existing folder.
    """
    chance, paths = np.random.default_rng(0), []
    for number in range(PHOTOS):
        coarse = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise = chance.normal(0, 6, (480, 640, 3))
        pixels = (np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)) + noise).clip(0, 255)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def plain(path: Path, jitter: Jitter, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return an image and ten patches of it, the plain way.

    Args:
        path: A photograph.
        jitter: What is done to patches.
        chance: Source of sizes and places; torchvision draws its own.
    """
    from torchvision.transforms import ColorJitter
    from torchvision.transforms import functional as transforms

    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    colours: Any = ColorJitter(*strengths)

    def tensor(picture: Image.Image) -> Tensor:
        made: Tensor = transforms.normalize(transforms.to_tensor(picture), IMAGENET_MEAN, IMAGENET_STD)
        return made

    def patch() -> Tensor:
        width, height = (int(chance.integers(8, side - 8)) for side in picture.size)
        left, top = int(chance.integers(picture.width - width)), int(chance.integers(picture.height - height))
        piece = picture.crop((left, top, left + width, top + height)).resize((128, 128), Image.Resampling.BILINEAR)
        if chance.random() < jitter.probability:
            piece = colours(piece)
        if chance.random() < jitter.grey:
            piece = piece.convert("L").convert("RGB")
        if chance.random() < jitter.blur:
            piece = piece.filter(ImageFilter.GaussianBlur(chance.uniform(jitter.blur_low, jitter.blur_high)))
        return tensor(piece)

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    patches = torch.stack([patch() for _ in range(10)])
    return tensor(picture.resize((533, 400), Image.Resampling.BILINEAR)), patches


def ours(path: Path, jitter: Jitter, generator: torch.Generator, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return the same, our way.

    Args:
        path: A photograph.
        jitter: What is done to patches.
        generator: Source of all randomness.
        backbone: Normalises pixels.
    """
    task = RandomQueryPatch(jitter=jitter, image_sides=(400,))
    sample = task.views()(unlabelled(read_image(path, ImageRules()), path.name), generator)
    assert isinstance(sample.problem, Patches)
    drawn = sample.problem.jitter
    patches = in_one_row(sample.problem.pixels[None], None if drawn is None else drawn[None])
    images = collate([sample]).images
    return backbone.normalise(images), backbone.normalise(patches)


def measure_views(folder: Path, repeats: int) -> Iterator[Ratio]:
    """Yield how many times faster our views are, without and with jitter.

    Args:
        folder: An existing folder for photographs.
        repeats: Rounds.
    """
    paths = write_photos(folder)
    for kind, jitter in (("without", WITHOUT), ("with", Jitter())):
        workers = [
            Worker(prepare=partial(_our_round, paths, jitter), set_up=_as_our_loader),
            Worker(prepare=partial(_plain_round, paths, jitter)),
        ]
        row = compared(
            f"image and ten patches of a JPEG of 640 x 480 pixels, {kind} jitter",
            "Pillow, patch by patch",
            in_workers(workers, repeats),
        )
        yield replace(row, seconds=row.seconds / PHOTOS)


LARGE, DRAFT = (3000, 4000), 480
"""Height and width of a large photograph, and `data.draft` for it."""


def measure_drafts(folder: Path, repeats: int) -> Iterator[Ratio]:
    """Yield how many times faster a view of a large photograph is that is decoded at a fraction of its size.

    Args:
        folder: An existing folder for a photograph.
        repeats: Rounds.
    """
    place = folder / "large"
    place.mkdir(exist_ok=True)
    small = Image.open(write_photos(folder)[0])
    small.resize(LARGE[::-1], Image.Resampling.BICUBIC).save(place / "0.jpg", quality=90)
    workers = [Worker(prepare=partial(_large_round, place, short), set_up=_as_our_loader) for short in (DRAFT, 0)]
    yield compared(
        f"image and ten patches of a JPEG of {LARGE[1]} x {LARGE[0]} pixels, data.draft={DRAFT}",
        "the same, decoded whole",
        in_workers(workers, repeats),
        "pixels differ",
    )


def _large_round(folder: Path, short: int) -> Callable[[], object]:
    source, generator = open_images([folder], ImageRules()), torch.Generator().manual_seed(0)
    source = source.drafted(short) if short else source
    views = RandomQueryPatch(jitter=WITHOUT, image_sides=(400,)).views()
    return lambda: views(source[0], generator)


def _as_our_loader(_: int) -> None:
    keep_freed_memory()


def _our_round(paths: list[Path], jitter: Jitter) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="tiny", frozen_stages=0))
    return lambda: [ours(path, jitter, generator, backbone) for path in paths]


def _plain_round(paths: list[Path], jitter: Jitter) -> Callable[[], object]:
    chance = np.random.default_rng(0)
    return lambda: [plain(path, jitter, chance) for path in paths]
