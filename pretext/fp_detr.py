"""labelled images -> the class of the whole: how FP-DETR is pretrained (Wang et al. 2022), **supervised, not SSL**.

Folder names are labels, one per image: `folders:ROOT`. A class token joins the cells in the last layers and is read by
a linear classifier; tokenizer and all layers go on to detection, where queries take the place of the token. Because
labels are read, the task is no `PretextTask`: it is started by `ssldet finetune scratch`, never by `ssldet pretrain`,
which promises to read none. The authors' code for this stage is not published; they name DeiT's recipe (Touvron et al.
2021) with one token and without the adaptor. Known differences between that recipe and this file:

    topic                 DeiT                                  here
    colours               RandAugment with noise, from timm     torchvision's RandAugment of the same strength
    erasing               with noise                            with ImageNet's mean colour
    repeated augmentation three views of an image in a batch    none
    stochastic depth      0.1                                   the detector's dropout
    average of weights    0.99996                               `optim.ema`, which the recipes leave off
    decay                 not on norms, biases and token        on every parameter
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms import v2

from pretext.backbone_task import middle
from pretext.class_token import UNTAUGHT, ClassToken, joined, problems_with_joining
from pretext.folders import WHOLE
from pretext.top_one import TopOne
from ssldet.chance import lent
from ssldet.data.images import BACKDROP
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.errors import DataError
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Objective, Stage, Task, Views
from ssldet.types import Batch, Detections, Losses, Sample, Targets

LIKELY = 5
"""Classes that are named for an image, at most."""
OPERATIONS = 2
"""Operations of RandAugment on one image, as in DeiT."""


def _with_categories_of(task: "ImageClassification", source: Source) -> "ImageClassification":
    return replace(task, categories=len(source.classes))


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Task):
    """Name the class of whole images by a class token: supervised, from folder names. Defaults are DeiT's.

    Attributes:
        crop_size: Side of the crop of a training image, in pixels.
        min_scale: Smallest share of the image's area that a crop shows.
        flip: Probability that a training image is mirrored.
        colours: Strength of RandAugment, 0 to 30; 0 leaves colours and shape alone.
        erase: Probability that a rectangle of a training image is erased.
        mixup: Parameter of the distribution of weights with which two images are mixed; 0 mixes none.
        cutmix: The same for images of which one stands in the other; where both are given, each batch draws one.
        smoothing: Share of a label that is spread over all classes.
        eval_side: Side in pixels of the centre crop that is classified outside training.
        categories: Number of classes; taken from the data.
    """

    cite: ClassVar[str] = "wang2022fpdetr"
    headline: ClassVar[str] = "top1"
    stage: ClassVar[Stage] = Stage(learns_from=_with_categories_of)

    crop_size: Annotated[int, Within(8)] = 224
    min_scale: Annotated[float, Within(1e-3, 1)] = 0.08
    flip: Annotated[float, Within(0, 1)] = 0.5
    colours: Annotated[int, Within(0, 30)] = 9
    erase: Annotated[float, Within(0, 1)] = 0.25
    mixup: Annotated[float, Within(0)] = 0.8
    cutmix: Annotated[float, Within(0)] = 1.0
    smoothing: Annotated[float, Within(0, 0.99)] = 0.1
    eval_side: Annotated[int, Within(8)] = 224
    categories: Annotated[int, Within(1)] = 1000

    def rests(self, section: str) -> bool:
        """Return whether a section is one that a class token does without."""
        return section in UNTAUGHT

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is one that a class token does without."""
        return section in UNTAUGHT

    def views(self, *, training: bool = True) -> Views:
        """Return the function that crops and changes an image or, outside training, takes its middle."""
        return ClassViews(task=self, training=training)

    def objective(self, detector: Detector) -> "ClassPrediction":
        """Return the module that classifies by the token."""
        return ClassPrediction(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the share of images whose class is named first."""
        return TopOne()

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the source, if every image has one class.

        Raises:
            DataError: Images have boxes instead, or no class, or all have the same.
        """
        known = (source.targets_of(index) for index in range(len(source)))
        if not all(targets is not None and _is_whole(targets) for targets in known):
            raise DataError(
                "images have no class of their own; sort them into a folder per class, and name folders:ROOT"
            )
        if training and len(source.classes) < 2:
            raise DataError(f"all images are of one class, {source.classes[0]!r}; nothing can be told apart")
        return source

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message if no token can join this detector's layers."""
        return problems_with_joining(self, detector)


def _is_whole(targets: Targets) -> bool:
    return len(targets) == 1 and targets.boxes[0].tolist() == list(WHOLE)


@dataclass(frozen=True, kw_only=True)
class ClassViews:
    """Makes the crop of an image that is classified.

    Attributes:
        task: The task's choices.
        training: False takes the middle of the image, unchanged.
    """

    task: ImageClassification
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the crop; its label stays that of the image."""
        if not self.training:
            return replace(sample, image=middle(sample, self.task.eval_side))
        with lent(generator):
            return replace(sample, image=_augmentation(self.task)(sample.image))


def _augmentation(task: ImageClassification) -> v2.Transform:
    """Return torchvision's transforms, which draw from global random states."""
    size = (task.crop_size, task.crop_size)
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(size, (task.min_scale, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(task.flip),
    ]
    if task.colours:
        steps.append(v2.RandAugment(OPERATIONS, task.colours, fill=list(BACKDROP)))
    if task.erase:
        steps.append(v2.RandomErasing(task.erase, value=list(BACKDROP)))
    return v2.Compose(steps)


class ClassPrediction(Objective):
    """Classifies images by a class token.

    Attributes:
        detector: The detector whose tokenizer and layers are taught.
        token: The class token; left behind, like the classifier.
        classifier: State of the token -> one logit per class.
    """

    def __init__(self, task: ImageClassification, detector: Detector) -> None:
        """Build token and classifier.

        Args:
            task: The task's choices.
            detector: An FP-DETR.
        """
        super().__init__()
        self.task, self.detector = task, detector
        self.token = ClassToken(detector.width)
        self.classifier = nn.Linear(detector.width, task.categories)

    def forward(self, batch: Batch) -> Losses:
        """Classify mixed images, and compare with their mixed labels."""
        labels = torch.cat([targets.labels for targets in batch.targets])
        pixels, wanted = batch.images.float() / 255, labels
        if self.training and (mixes := _mixes(self.task)):
            pixels, wanted = v2.RandomChoice(mixes)(pixels, labels)
        logits = self._classify(pixels)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits, wanted, label_smoothing=self.task.smoothing)
        return Losses(
            terms={"class": loss.reshape(1)},
            weights={"class": 1.0},
            metrics={"accuracy": (logits.detach().argmax(1) == labels).float().mean()},
        )

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return the likeliest classes of each image, each with the box around the whole of it."""
        likely = self._classify(batch.images.float() / 255).softmax(1).topk(min(LIKELY, self.task.categories))
        height, width = batch.original_sizes.unbind(1)
        corners = torch.stack([torch.zeros_like(width), torch.zeros_like(height), width, height], dim=1).float()
        return [
            Detections(boxes=whole.expand(len(labels), -1), scores=scores, labels=labels)
            for whole, scores, labels in zip(corners.to(likely.values), likely.values, likely.indices, strict=True)
        ]

    def _classify(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        state = self.token(joined(self.detector), pixels)
        with torch.autocast(state.device.type, enabled=False):
            logits: Tensor = self.classifier(state.float())
            return logits


def _mixes(task: ImageClassification) -> list[Any]:
    """Return the ways in which the images of a batch are mixed, with their labels."""
    ways = ((v2.MixUp, task.mixup), (v2.CutMix, task.cutmix))
    return [way(alpha=alpha, num_classes=task.categories) for way, alpha in ways if alpha > 0]
