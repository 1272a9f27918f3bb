"""list[dict] of detectron2 -> losses or Instances: any objective of ours as a meta-architecture, unchanged inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from downstream.export.detectron2.building import Blueprint, blueprint
from downstream.export.detectron2.catalogue import classes_of, contiguous, register
from downstream.export.detectron2.sidecar import own_configuration
from ssldet.boxes import to_normalised
from ssldet.data.collate import collate
from ssldet.detectors.base import Detector
from ssldet.disk import Disk, write_whole
from ssldet.errors import ConfigError
from ssldet.patches import Patches
from ssldet.recipe import to_document
from ssldet.task import Objective, learning_sections
from ssldet.types import Answer, Batch, Detections, Losses, Sample, Targets

FINAL = "model_final.yaml"
PIXEL_TOLERANCE = 0.1
"""Difference of means and deviations, in levels of 255, that a rounded number in a configuration may make."""


class SSLDet(nn.Module):
    """An objective of ours behind detectron2's contract.

    Tensors have the names that they have in an objective: `detector.…`, and heads such as `patch_queries.…`.

    Attributes:
        detector: Who is asked.
    """

    detector: Detector
    pixel_mean: Tensor

    @configurable  # type: ignore[untyped-decorator]
    def __init__(
        self, *, blueprint: Blueprint, classes: Sequence[str], stuff: Sequence[int] = (), output: str = ""
    ) -> None:
        """Build the detector inside its task.

        Args:
            blueprint: Task and detector.
            classes: Class names in the order of the labels.
            stuff: Labels that have no objects to count; detectron2 numbers them and the others each from 0.
            output: Folder in which detectron2 will save the model; what it is, its files can't say, so that is written
                there at once, beside `model_final.pth`. Empty text writes nothing.
        """
        super().__init__()
        objective = blueprint.task.objective(blueprint.detector.build())
        # Its parts become parts of this model, under their own names. The objective itself must not, or every name of
        # the state would begin with `objective.`; PyTorch doesn't look into a tuple.
        for name, part in objective.named_children():
            self.add_module(name, part)
        self._conducts = (objective,)
        objective.detector.train_only(learning_sections(blueprint.task, objective.detector))
        self.contiguous = contiguous(len(classes), stuff)
        mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in _pixels(objective.detector))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        if output and comm.is_main_process():
            info = {"task": to_document(blueprint.task), "detector": to_document(blueprint.detector)}
            Path(output).mkdir(parents=True, exist_ok=True)
            content = own_configuration(_backbone(objective.detector), info | {"classes": list(classes)})
            write_whole(Path(output) / FINAL, content, Disk())

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Read a yacs configuration.

        Raises:
            ConfigError: Colours, means or classes are not what the model needs; all problems at once.
        """
        ours = cfg.MODEL.SSLDET
        sets = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST[:1]
        plan, classes, stuff = planned(ours.RECIPE, sets, ours.SET, cfg.MODEL.WEIGHTS)
        if wrong := _colour_problems(cfg, plan):
            raise ConfigError(wrong)
        return {"blueprint": plan, "classes": classes, "stuff": stuff, "output": cfg.OUTPUT_DIR}

    @property
    def objective(self) -> Objective:
        """What conducts a batch through the parts of this model."""
        return self._conducts[0]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Return weighted losses in training, else what was found.

        Args:
            batched_inputs: Dictionaries of detectron2: `image` (RGB, 0 to 255), in training `instances`, else `height`
                and `width` of the answer; one-shot detection also needs `query_patch`.
        """
        self.objective.train(self.training)
        batch = batch_of(batched_inputs).to(self.device)
        if self.training:
            return _weighted(self.objective(batch))
        found = self.objective.answer(batch)
        sizes = [_size_of(entry) for entry in batched_inputs]
        return [self._answer(one, size) for one, size in zip(found, sizes, strict=True)]

    def _answer(self, found: Answer, size: tuple[int, int]) -> dict[str, Any]:
        """Return things as Instances; where pixels are told apart, the segments too, numbered as detectron2 does."""
        assert isinstance(found, Detections), "only tasks that detect are wrapped"
        numbers = [self.contiguous.get(int(label), (True, int(label))) for label in found.labels]
        chosen = torch.tensor([n for n, (thing, _) in enumerate(numbers) if thing], dtype=torch.int64).to(self.device)
        labels = torch.tensor([number for thing, number in numbers if thing], dtype=torch.int64).to(self.device)
        instances = Instances(
            size, pred_boxes=Boxes(found.boxes[chosen]), scores=found.scores[chosen], pred_classes=labels, order=chosen
        )
        instances = detector_postprocess(instances, *size)
        order = instances.get("order")
        instances.remove("order")
        answer: dict[str, Any] = {"instances": instances}
        if found.masks is not None:
            instances.pred_masks = found.masks[order]
        if found.segmentation is not None:
            segments, info = found.segmentation.segments.to(torch.int32), []
            for number, label in enumerate(found.segmentation.labels.tolist(), start=1):
                thing, contiguous = self.contiguous[label]
                area = int((segments == number).sum())
                info.append({"id": number, "isthing": thing, "category_id": contiguous, "area": area})
            answer["panoptic_seg"] = segments, info
            answer["sem_seg"] = self._stuff_map(segments, info)
        return answer

    def _stuff_map(self, segments: Tensor, info: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return detectron2's map of stuff, one plane a class and the first one for all things."""
        planes = 1 + sum(not thing for thing, _ in self.contiguous.values())
        result = torch.zeros(planes, *segments.shape, device=segments.device)
        for entry in info:
            result[0 if entry["isthing"] else 1 + entry["category_id"]][segments == entry["id"]] = 1
        return result


def planned(
    recipe: str, train: Sequence[str], overrides: Sequence[str], weights: str = ""
) -> tuple[Blueprint, tuple[str, ...], tuple[int, ...]]:
    """Return what is built for a training set, its classes, and which of those are stuff.

    Args:
        recipe: Name of a recipe.
        train: Training sets.
        overrides: Recipe fields, `path=value`.
        weights: See `blueprint`.

    Raises:
        ConfigError: The sets have different classes.
    """
    kinds = {spec: classes_of(MetadataCatalog.get(register(spec))) for spec in train}
    classes, stuff = kinds[train[0]]
    for spec, other in kinds.items():
        if other != (classes, stuff):
            raise ConfigError(f"{spec}: has other classes than {train[0]}; train on sets with the same ones")
    chosen = dict(pair.split("=", 1) for pair in overrides)
    return blueprint(recipe, classes, stuff=stuff, weights=weights, overrides=chosen), classes, stuff


def batch_of(entries: Sequence[Mapping[str, Any]]) -> Batch:
    """Gather detectron2's dictionaries as our loader gathers samples."""
    return collate([_sample_of(number, entry) for number, entry in enumerate(entries)])


def _sample_of(number: int, entry: Mapping[str, Any]) -> Sample:
    image: Tensor = entry["image"]
    if image.dtype != torch.uint8:
        # detectron2's predictor hands over what it has resized as floating point.
        image = image.round().clamp(0, 255).to(torch.uint8)
    size = (int(image.shape[1]), int(image.shape[2]))
    targets = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    if (instances := entry.get("instances")) is not None:
        targets = Targets(
            boxes=to_normalised(instances.gt_boxes.tensor.float().cpu(), size),
            labels=instances.gt_classes.cpu(),
            masks=instances.gt_masks.tensor.cpu() if instances.has("gt_masks") else None,
        )
    key = str(entry.get("ssldet_key", entry.get("image_id", number)))
    patch = entry.get("query_patch")
    return Sample(
        image=image.cpu(),
        targets=targets,
        key=key,
        original_size=_size_of(entry),
        problem=None if patch is None else Patches(pixels=patch),
    )


def _size_of(entry: Mapping[str, Any]) -> tuple[int, int]:
    height, width = entry["image"].shape[1:]
    return int(entry.get("height", height)), int(entry.get("width", width))


def _weighted(losses: Losses) -> dict[str, Tensor]:
    """Return what detectron2 adds up, and send what is only watched to its storage."""
    if has_event_storage():
        for name, value in losses.metrics.items():
            get_event_storage().put_scalar(name, float(value))
    weighted = {}
    for name, term in losses.terms.items():
        *earlier, last = (losses.weights[name] * term).unbind()
        weighted[f"loss_{name}"] = last
        weighted |= {f"loss_{name}_{layer}": value for layer, value in enumerate(earlier)}
    return weighted


def _pixels(detector: Detector) -> tuple[tuple[float, ...], tuple[float, ...]]:
    backbone = _backbone(detector)
    return backbone.mean, backbone.std


def _backbone(detector: Detector) -> Any:
    return detector.backbone


def _colour_problems(cfg: Any, plan: Blueprint) -> list[str]:
    with torch.device("meta"):
        mean, std = _pixels(plan.detector.build())
    wrong = []
    if cfg.INPUT.FORMAT != "RGB":
        wrong.append(f"INPUT.FORMAT: {cfg.INPUT.FORMAT}, but the backbone has learned from RGB; set INPUT.FORMAT RGB")
    for name, stated, own in (("PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, mean), ("PIXEL_STD", cfg.MODEL.PIXEL_STD, std)):
        wanted = [round(value * 255, 3) for value in own]
        if any(abs(given - value) > PIXEL_TOLERANCE for given, value in zip(stated, wanted, strict=True)):
            wrong.append(f"MODEL.{name}: {list(stated)}, but the backbone was made for {wanted}; set it to that")
    return wrong


if SSLDet.__name__ not in META_ARCH_REGISTRY:  # a second import must do no harm
    META_ARCH_REGISTRY.register(SSLDet)
