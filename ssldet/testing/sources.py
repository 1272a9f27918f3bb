"""a source -> the laws it must keep: functions of the source and of the same set once more."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ssldet.boxes import cxcywh_to_xyxy, to_absolute
from ssldet.data.collate import collate
from ssldet.data.problems import same
from ssldet.data.sources import PartSource, Unlabelled
from ssldet.errors import UnreadableError
from ssldet.source import Measurable, Source
from ssldet.testing.law import require, seeded
from ssldet.types import Detections, Sample, Targets

LOOKED_AT = 8
"""Images that each law reads, from all over the source; what can be known without reading is checked of all."""

SourceLaw = Callable[[Source, Source], None]


def check_source(source: Source, again: Source | None = None) -> None:
    """Check every law of sources.

    Args:
        source: Any source, opened; a few of its images are read.
        again: The same set, opened a second time; `None` takes a pickled copy of the source.

    Raises:
        AssertionError: A law is broken; the message says which and how.
    """
    other = _pickled(source) if again is None else again
    for law in SOURCE_LAWS:
        law(source, other)


def images_are_numbered_from_zero(source: Source, again: Source) -> None:
    """There is at least one image, every number below the length is one, and no other is."""
    require(len(source) > 0, "there is no image")
    require(len(source) == len(again), f"{len(source)} images, and {len(again)} when opened again")
    for read in (source.__getitem__, source.path_of, source.targets_of, lambda index: source.draw(index, seeded(0))):
        for index in (-1, len(source)):
            try:
                answer = read(index)
            except IndexError:
                continue
            require(answer is None, f"image {index} of {len(source)} is answered for; raise IndexError")


def keys_are_unique(source: Source, again: Source) -> None:
    """No two images have one key, and a source that lists its keys lists those of its samples."""
    found = dict(_samples(source))
    keys = [sample.key for sample in found.values()]
    require(len(set(keys)) == len(keys), f"two images have one key: {sorted(keys)}")
    if isinstance(source, Measurable):
        require(len(set(source.keys)) == len(source), f"{len(set(source.keys))} keys for {len(source)} images")
        require(len(source.image_ids) == len(source), f"{len(source.image_ids)} ids for {len(source)} images")
        for index, sample in found.items():
            require(sample.key == source.keys[index], f"image {index} is {sample.key!r}, not {source.keys[index]!r}")


def the_fingerprint_is_stable(source: Source, again: Source) -> None:
    """The same set has the same fingerprint: opened again, pickled, and after images were read."""
    before = source.fingerprint
    require(bool(before), "the fingerprint is empty")
    list(_samples(source))
    for other in (source, again, _pickled(source)):
        require(other.fingerprint == before, f"the fingerprint of one set is {before!r} and {other.fingerprint!r}")


def items_are_functions_of_their_number(source: Source, again: Source) -> None:
    """An image is the same whenever it is read; one that is drawn depends on the generator as well, and on no more."""
    for index, sample in _samples(source):
        torch.rand(7)
        require(same(sample, source[index]), f"image {index} differs when it is read twice")
        require(same(sample, again[index]), f"image {index} differs in the same set")
        drawn = source.draw(index, seeded(1))
        torch.rand(7)
        require(same(drawn, again.draw(index, seeded(1))), f"draw({index}) uses chance that is not the generator's")


def the_order_is_a_permutation(source: Source, again: Source) -> None:
    """An epoch shows every image once, in an order that is a function of seed and epoch."""
    for seed, epoch in ((0, 0), (0, 1), (3, 0)):
        place = f"order({seed}, {epoch})"
        order = source.order(seed, epoch)
        whole = sorted(order.tolist()) == list(range(len(source)))
        require(whole, f"{place} does not show each of {len(source)} images once")
        torch.rand(7)
        require(torch.equal(order, again.order(seed, epoch)), f"{place} depends on more than seed and epoch")


def targets_lie_in_the_image(source: Source, again: Source) -> None:
    """An image is given whole, every box has an area and lies inside, and every label is a class."""
    for index, sample in _samples(source):
        size, targets = tuple(sample.image.shape[1:]), sample.targets
        require(size == sample.original_size, f"image {index} has {size} pixels and says {sample.original_size}")
        boxes = cxcywh_to_xyxy(targets.boxes)
        inside = bool(((boxes >= -1e-5) & (boxes <= 1 + 1e-5)).all())
        require(inside and bool((boxes[:, 2:] > boxes[:, :2]).all()), f"image {index}: a box lies outside or is empty")
        known = bool(((targets.labels >= 0) & (targets.labels < len(source.classes))).all())
        require(known, f"image {index} has labels {targets.labels.tolist()} of {len(source.classes)} classes")
        if targets.masks is not None:
            right = tuple(targets.masks.shape) == (len(targets), *size)
            require(right, f"image {index}: masks of shape {tuple(targets.masks.shape)} for {len(targets)} objects")


def what_is_said_of_classes_agrees(source: Source, again: Source) -> None:
    """Ids and kinds of classes are as many as classes, and follow them when they are counted in another order."""
    classes, ids, things = source.classes, source.category_ids, source.is_thing
    require(len(ids) in {0, len(classes)}, f"{len(ids)} category_ids for {len(classes)} classes")
    require(len(set(ids)) == len(ids), f"two classes have one id: {ids}")
    require(len(things) in {0, len(classes)}, f"{len(things)} entries of is_thing for {len(classes)} classes")
    turned = source.with_classes(classes[::-1]) if len(set(classes)) == len(classes) else None
    if turned is None:
        return
    require(turned.classes == classes[::-1], f"with_classes({classes[::-1]}) has the classes {turned.classes}")
    require(turned.category_ids == ids[::-1], "with_classes leaves category_ids in the old order")
    require(turned.is_thing == things[::-1], "with_classes leaves is_thing in the old order")
    require(source.classes == classes, "with_classes changes the source that it is asked of")
    for index, sample in _samples(source):
        here, there = source.targets_of(index), turned.targets_of(index)
        pairs = [(sample.targets, turned[index].targets)]
        pairs += [(here, there)] if here is not None and there is not None else []
        for ours, theirs in pairs:
            moved = replace(ours, labels=len(classes) - 1 - ours.labels)
            require(_alike(moved, theirs), f"with_classes gives image {index} other targets")


def what_is_known_without_reading_is_true(source: Source, again: Source) -> None:
    """A path is that of a file, and size, targets and names are those that the image has when it is read."""
    names = list(map(source.name_of, range(len(source))))
    require(list(source.all_names()) == names, "all_names() and name_of call images differently")
    for index, sample in _samples(source):
        path, targets = source.path_of(index), source.targets_of(index)
        require(path is None or path.is_file(), f"path_of({index}) is {path}, which is no file")
        encoded = source.encoded(index)
        require(encoded is None or len(encoded) > 0, f"encoded({index}) is empty")
        size = source.size_of(index)
        require(size in {None, sample.original_size}, f"size_of({index}) is {size}, not {sample.original_size}")
        require(targets is None or _alike(targets, sample.targets), f"targets_of({index}) are not those of the image")


def it_travels_into_workers(source: Source, again: Source) -> None:
    """A pickled source reads the same images."""
    there = _pickled(source)
    require(len(there) == len(source) and there.classes == source.classes, "a pickled source is another one")
    for index, sample in _samples(source):
        require(same(sample, there[index]), f"a pickled source reads another image {index}")


def wrappers_keep_what_it_can(source: Source, again: Source) -> None:
    """A part of the source can do what the source can; without labels, all that has nothing to do with labels."""
    numbers = list(dict.fromkeys((len(source) - 1, 0)))
    part, blind = PartSource(source, numbers), Unlabelled(source)
    require(part.classes == source.classes, "a part has other classes")
    require(part.category_ids == source.category_ids, "a part has other category_ids")
    require(part.is_thing == source.is_thing, "a part has another is_thing")
    require(part.skipped == blind.skipped == source.skipped, "a wrapper names other skipped files")
    require(blind.fingerprint == source.fingerprint, "without labels it has another fingerprint")
    require(torch.equal(blind.order(0, 1), source.order(0, 1)), "without labels it has another order")
    for place, number in enumerate(numbers):
        require(part.path_of(place) == blind.path_of(number) == source.path_of(number), "a wrapper names another path")
        known, whole = part.targets_of(place), source.targets_of(number)
        require((known is None) == (whole is None), "a part forgets targets_of")
        require(known is None or whole is None or _alike(known, whole), "a part knows other targets")
        drawn = source.draw(number, seeded(1))
        require(same(part.draw(place, seeded(1)), drawn), "a part draws another sample")
        unlabelled = blind.draw(number, seeded(1))
        require(torch.equal(unlabelled.image, drawn.image), "without labels it draws other pixels")
        require(not len(unlabelled.targets), "labels are left")


def results_have_original_ids(source: Source, again: Source) -> None:
    """Who can be measured on gives boxes back in pixels, xywh, under the ids of the annotations."""
    if not isinstance(source, Measurable):
        return
    truth = source.ground_truth()
    missing = {"images", "annotations", "categories"} - truth.keys()
    require(not missing, f"ground_truth lacks {sorted(missing)}")
    images, categories = ({row["id"] for row in truth[name]} for name in ("images", "categories"))
    for index, sample in _samples(source):
        boxes = to_absolute(sample.targets.boxes, sample.original_size)
        found = Detections(boxes=boxes, scores=torch.ones(len(boxes)), labels=sample.targets.labels)
        rows = source.to_results([found], collate([sample]))
        require(len(rows) == len(found), f"{len(rows)} results for {len(found)} detections")
        for row, (left, top, right, bottom) in zip(rows, boxes.tolist(), strict=True):
            named = row["image_id"] == source.image_ids[index] in images and row["category_id"] in categories
            require(named, f"a result has ids that ground_truth does not know: {row}")
            off = max(abs(a - b) for a, b in zip(row["bbox"], (left, top, right - left, bottom - top), strict=True))
            require(off < 1e-2, f"a result has the box {row['bbox']}, which is not xywh in pixels of what was found")


SOURCE_LAWS: tuple[SourceLaw, ...] = (
    images_are_numbered_from_zero,
    keys_are_unique,
    the_fingerprint_is_stable,
    items_are_functions_of_their_number,
    the_order_is_a_permutation,
    targets_lie_in_the_image,
    what_is_said_of_classes_agrees,
    what_is_known_without_reading_is_true,
    it_travels_into_workers,
    wrappers_keep_what_it_can,
    results_have_original_ids,
)
"""All laws of sources."""


def _samples(source: Source) -> Iterator[tuple[int, Sample]]:
    """Yield some images with their numbers, without those that can't be read."""
    step = max(1, len(source) // LOOKED_AT)
    for index in range(0, len(source), step)[:LOOKED_AT]:
        try:
            yield index, source[index]
        except UnreadableError:
            # The loader goes round such a file and counts it.
            continue


def _alike(one: Targets, other: Targets) -> bool:
    """Return whether two targets have the same labels and, to a rounding of the last digits, the same boxes."""
    same_labels = torch.equal(one.labels, other.labels)
    return same_labels and bool(torch.allclose(one.boxes, other.boxes, atol=1e-5))


def _pickled(source: Source) -> Source:
    copied: Source = pickle.loads(pickle.dumps(source))  # noqa: S301  # our own bytes
    return copied
