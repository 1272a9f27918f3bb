"""list[dict] of detectron2 -> losses or `Instances`: any of our objectives as a meta-architecture."""

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
"""Allowed rounding error of means and standard deviations in a configuration, in levels of 255."""


class SSLDet(nn.Module):
    """One of our objectives with the interface of detectron2's models.

    Tensors have the names that they have in an objective: `detector.…`, and heads such as `patch_queries.…`.

    Attributes:
        detector: The detector.
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
            stuff: Labels of the classes without countable objects; detectron2 numbers them and the others each from 0.
            output: Folder in which detectron2 will save `model_final.pth`. Its files don't describe the model, so a
                configuration is written there at once. An empty string writes nothing.
        """
        super().__init__()
        objective = blueprint.task.objective(blueprint.detector.build())
        # The children of the objective become children of this model, under their own names. The objective itself must
        # not, or every name of the state would begin with `objective.`; PyTorch does not register what a tuple holds.
        for name, part in objective.named_children():
            self.add_module(name, part)
        self._objective = (objective,)
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
            ConfigError: Colours, means or classes do not fit the model; the message lists all problems.
        """
        ours = cfg.MODEL.SSLDET
        sets = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST[:1]
        plan, classes, stuff = planned(ours.RECIPE, sets, ours.SET, cfg.MODEL.WEIGHTS)
        if wrong := _colour_problems(cfg, plan):
            raise ConfigError(wrong)
        return {"blueprint": plan, "classes": classes, "stuff": stuff, "output": cfg.OUTPUT_DIR}

    @property
    def objective(self) -> Objective:
        """The objective, which computes losses and answers with the parts of this model."""
        return self._objective[0]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Return weighted losses in training, otherwise detections.

        Args:
            batched_inputs: Dictionaries of detectron2: `image` (RGB, 0 to 255), in training `instances`, else `height`
                and `width` of the answer; one-shot detection also needs `query_patch`.
        """
        self.objective.train(self.training)
        batch = batch_of(batched_inputs).to(self.device)
        if self.training:
            return _weighted(self.objective(batch))
        sizes = [_size_of(entry) for entry in batched_inputs]
        return [self._output(one, size) for one, size in zip(self.objective.answer(batch), sizes, strict=True)]

    def _output(self, answer: Answer, size: tuple[int, int]) -> dict[str, Any]:
        """Return things as `Instances` and, if there is a segmentation, its segments, numbered as in detectron2."""
        assert isinstance(answer, Detections), "only tasks that detect are wrapped"
        numbers = [self.contiguous.get(int(label), (True, int(label))) for label in answer.labels]
        chosen = torch.tensor([n for n, (thing, _) in enumerate(numbers) if thing], dtype=torch.int64).to(self.device)
        labels = torch.tensor([number for thing, number in numbers if thing], dtype=torch.int64).to(self.device)
        instances = Instances(
            size,
            pred_boxes=Boxes(answer.boxes[chosen]),
            scores=answer.scores[chosen],
            pred_classes=labels,
            order=chosen,
        )
        instances = detector_postprocess(instances, *size)
        order = instances.get("order")
        instances.remove("order")
        output: dict[str, Any] = {"instances": instances}
        if answer.masks is not None:
            instances.pred_masks = answer.masks[order]
        if answer.segmentation is not None:
            segments, info = answer.segmentation.segments.to(torch.int32), []
            for number, label in enumerate(answer.segmentation.labels.tolist(), start=1):
                thing, contiguous = self.contiguous[label]
                area = int((segments == number).sum())
                info.append({"id": number, "isthing": thing, "category_id": contiguous, "area": area})
            output["panoptic_seg"] = segments, info
            output["sem_seg"] = self._stuff_map(segments, info)
        return output

    def _stuff_map(self, segments: Tensor, info: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return detectron2's map of stuff: the first plane is all things, then one plane per class of stuff."""
        planes = 1 + sum(not thing for thing, _ in self.contiguous.values())
        result = torch.zeros(planes, *segments.shape, device=segments.device)
        for entry in info:
            result[0 if entry["isthing"] else 1 + entry["category_id"]][segments == entry["id"]] = 1
        return result


def planned(
    recipe: str, train: Sequence[str], overrides: Sequence[str], weights: str = ""
) -> tuple[Blueprint, tuple[str, ...], tuple[int, ...]]:
    """Return the blueprint for a training set, its classes, and the labels of stuff.

    Args:
        recipe: Name of a recipe.
        train: Training sets.
        overrides: Recipe fields, `path=value`.
        weights: File from which the model starts, as for `blueprint`.

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
    """Collate detectron2's dictionaries into a batch, as our loader does with samples."""
    return collate([_sample_of(number, entry) for number, entry in enumerate(entries)])


def _sample_of(number: int, entry: Mapping[str, Any]) -> Sample:
    image: Tensor = entry["image"]
    if image.dtype != torch.uint8:
        # detectron2's predictor resizes images in floating point.
        image = image.round().clamp(0, 255).to(torch.uint8)
    size = (int(image.shape[1]), int(image.shape[2]))
    targets = Targets.none()
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
    """Return the losses that detectron2 adds up, and log the metrics in its event storage."""
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
        expected = [round(value * 255, 3) for value in own]
        if any(abs(value - right) > PIXEL_TOLERANCE for value, right in zip(stated, expected, strict=True)):
            wrong.append(f"MODEL.{name}: {list(stated)}, but the backbone was made for {expected}; set it to that")
    return wrong


if SSLDet.__name__ not in META_ARCH_REGISTRY:  # the module may be imported twice
    META_ARCH_REGISTRY.register(SSLDet)
