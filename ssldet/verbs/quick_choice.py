"""device, images, labels -> the recipe for users who name none, why it was chosen, and what it needs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ssldet import defaults
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.errors import CheckpointError
from ssldet.importing.base import Opened
from ssldet.ranks import rank
from ssldet.recipe import from_document, override
from ssldet.registry import names, remark
from ssldet.source import Source, objects_of
from ssldet.task import Task
from ssldet.verbs.choosing import Specs, resolve, texts
from ssldet.weights.cache import at_hand
from ssldet.weights.zoo import known_weights

log = logging.getLogger(__name__)

WITHOUT_THEM = "--set detector.backbone.weights=none does without, and finds far less on few photographs"
"""What to do where weights can't be had."""
FEW_LABELLED, FEW_UNLABELLED = 5_000, 20_000
"""Numbers of images below which a small model learns as much as a large one, even on an accelerator."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The run of a recipe that was named, or chosen because none was.

    Attributes:
        run: The run.
        recipe: Name of the recipe; empty where the user named it.
        why: Why it was chosen, as part of a sentence.
        named: Name of the recipe that the user named; empty for a record, a `Run`, or a choice.
    """

    run: Run
    recipe: str = ""
    why: str = ""
    named: str = ""

    @staticmethod
    def of(recipe: str, why: str, changes: Mapping[str, object] | None = None) -> "Choice":
        """Choose a recipe.

        Args:
            recipe: Its name.
            why: The reason, as part of a sentence.
            changes: Dotted fields in which the run differs from the recipe, and their values.
        """
        return Choice(run=override(resolve(recipe), dict(changes or {})), recipe=recipe, why=why)

    def announce(self, run: Run) -> None:
        """Say what was chosen and why, and what weights it starts from, before any of it is fetched.

        Args:
            run: The run of the recipe with the user's changes.
        """
        if rank() != 0:
            return
        if self.recipe:
            log.info("no recipe was named: %s is taken, because %s; --recipe NAME takes another", self.recipe, self.why)
        if said := weights_in_words(run.detector):
            log.info("the backbone starts from %s", said)
        if self.named and not torch.cuda.is_available() and (other := _for_a_cpu(self.named)):
            log.warning("%s is made for GPUs, and there is none here; --recipe %s is made for a CPU", self.named, other)


def choose_for_pretraining(recipe: str | Path | Run | None, images: Specs) -> Choice:
    """Return the run of a recipe or, where none is named, of one for this device and as many images.

    Args:
        recipe: A recipe; `None` chooses.
        images: Data specifications.

    Raises:
        DataError: A specification names nothing usable.
    """
    if recipe is not None:
        return Choice(run=resolve(recipe), named=recipe if isinstance(recipe, str) else "")
    if not torch.cuda.is_available():
        return Choice.of(defaults.PRETRAIN_SMALL, "this machine has no accelerator")
    count = len(open_source(texts(images), ImageRules())) if images else 0
    if count < FEW_UNLABELLED:
        return Choice.of(defaults.PRETRAIN_SMALL, f"{count:,} images are few")
    return Choice.of(defaults.PRETRAIN_LARGE, f"there are an accelerator and {count:,} images")


def choose_for_finetuning(recipe: str | Path | Run | None, data: Specs, opened: Opened | None) -> Choice:
    """Return the run of a recipe or, where none is named, of one that suits the start, or device, images and labels.

    Args:
        recipe: A recipe; `None` chooses.
        data: Data specifications.
        opened: What training starts from; `None` for the recipe's own detector.

    Raises:
        DataError: A specification names nothing usable.
    """
    if recipe is not None:
        return Choice(run=resolve(recipe), named=recipe if isinstance(recipe, str) else "")
    if opened is not None:
        return _like(from_document(DetectorConfig, opened.info["detector"]))  # type: ignore[type-abstract]
    counts = objects_of(open_source(texts(data), ImageRules()))
    most = max(counts, default=0)
    seen = f"{len(counts):,} labelled images with up to {most} objects"
    accelerated = torch.cuda.is_available()
    if accelerated and len(counts) >= FEW_LABELLED:
        recipe, why = defaults.FINETUNE_LARGE, f"there are an accelerator and {seen}"
    else:
        recipe = defaults.FINETUNE_SMALL
        why = f"{seen} are few" if accelerated else f"this machine has no accelerator, and there are {seen}"
    if most > resolve(recipe).detector.num_queries:
        return Choice.of(recipe, f"{why}, hence {most} queries", {"detector.num_queries": most})
    return Choice.of(recipe, why)


def _like(detector: DetectorConfig) -> Choice:
    """Return the recipe that was made for a detector of this kind and width; the large one if there is none."""
    for recipe in (defaults.FINETUNE_SMALL, defaults.SHOWN[1]):
        own = resolve(recipe).detector
        if type(own) is type(detector) and getattr(own, "width", 0) == getattr(detector, "width", 0):
            return Choice.of(recipe, "it was made for a detector like that of the start")
    why = "the start has a large detector"
    if not torch.cuda.is_available():
        why += f" (days without an accelerator; 'scratch' with {defaults.FINETUNE_SMALL} takes half an hour)"
    return Choice.of(defaults.FINETUNE_LARGE, why)


def _for_a_cpu(recipe: str) -> str:
    """Return the recipe of the same task that is made for a CPU and for photographs, if there is one.

    Args:
        recipe: Name of a recipe; empty is returned for one that is not made for GPUs.
    """
    group, small = "ssldet.recipes", f"{recipe.partition('/')[0]}/small"
    known = names(group)
    if recipe not in known or small not in known or remark(group, recipe, "Needs")[:1] != ["GPUs"]:
        return ""
    return small


def weights_in_words(detector: DetectorConfig) -> str:
    """Say which weights a backbone starts from, whence, under what licence and how large; empty without any.

    Args:
        detector: The configuration of the detector.
    """
    backbone = backbone_of(detector)
    if backbone is None or backbone.weights is None:
        return ""
    if Path(str(backbone.weights)).expanduser().exists():
        return str(backbone.weights)
    try:
        known = known_weights(str(backbone.weights), backbone.name)
    except CheckpointError:
        return ""  # loading them says what is wrong
    size = f"{known.megabytes} MB" if known.megabytes else "size not stated"
    place = at_hand(known)
    where = f"found at {place}" if place is not None else f"to be fetched from {known.address}; {WITHOUT_THEM}"
    return f"{known.name} ({known.source}; licence {known.licence}; {size}), {where}"


def warn_of_few_queries(detector: DetectorConfig, source: Source, task: Task | None = None) -> None:
    """Say if images hold more objects than the detector can find: those beyond its queries are never learned.

    Args:
        detector: The configuration of the detector.
        source: Labelled images.
        task: Knows how many objects the detector sees at once; `None` takes those of whole images.
    """
    counts: Sequence[int] = objects_of(source) if task is None else task.shown_at_once(source)
    many = [count for count in counts if count > detector.num_queries]
    if many:
        log.warning(
            "%d of %d images hold more objects than the detector has queries: up to %d objects%s, %d queries; the "
            "others are never found. Add --set detector.num_queries=%d",
            len(many),
            len(counts),
            max(many),
            " in one part" if task is not None and task.in_parts else "",
            detector.num_queries,
            max(many),
        )
