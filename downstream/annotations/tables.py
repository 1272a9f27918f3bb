"""hf:PATH[:SPLIT] -> a dataset of Hugging Face: labelled where it has a column `objects`, else images alone.

`objects` holds, for each row, `bbox` (x, y, width, height in pixels) and `category` of every object: a list of objects,
or an object of lists. `area` and `iscrowd` are read too, and so are the columns `image_id`, `height` and `width`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from downstream.annotations.fields import area_in, flag_in, image_id_in, size_in
from downstream.annotations.labelled import Annotated, LabelledImages
from downstream.annotations.labels import Rows
from downstream.annotations.numbers import LARGEST, finite_number
from downstream.annotations.problems import Problems, shown
from ssldet.data.images import ImageRules
from ssldet.data.table_images import TablePlace, TableSource
from ssldet.data.tables import Table, open_table, split_name
from ssldet.errors import DataError
from ssldet.source import Source, with_paths

OBJECTS = "objects"
CATEGORIES = ("category", "category_id", "label", "labels")
"""What the class of an object may be called."""
CROWD = ("iscrowd", "is_crowd")
"""What the flag of a crowd may be called."""
BOX = "expects four finite numbers [x, y, width, height] in pixels, none of the sides negative"
TOGETHER = 1000
"""Rows whose objects are read at once."""


@with_paths(0)
def open_hf(rest: str, rules: ImageRules, *, masks: bool = False) -> Source:
    """Open a dataset, whose images are judged like files.

    Args:
        rest: `PATH` or `PATH:SPLIT`, see `ssldet.data.tables.open_table`.
        rules: Which images are usable.
        masks: Refused: none are read.

    Raises:
        DataError: There is no such dataset, no usable image in it, or its labels are not sound.
        SetupError: The library `datasets` is missing, or what was named on the hub can't be fetched.
    """
    if masks:
        raise DataError(f"hf:{shown(rest)}: no masks are read from datasets; use coco:… or panoptic:…")
    table = open_table(rest)
    if OBJECTS not in table.rows.features:
        return TableSource(table, rules)
    problems = Problems(Path(table.spec))
    return LabelledImages(gather(table, problems), problems, rules)


def gather(table: Table, problems: Problems) -> Annotated:
    """Read what is sound of the labels of a table.

    Args:
        table: It has a column `objects`.
        problems: Takes what is wrong.
    """
    classes, rows = _Classes(table), Rows()
    for number, objects in enumerate(_objects(table)):
        for place, record in enumerate(objects):
            _add(record, number, f"row {number}, object {place}", classes, rows, problems)
    names = [str(number) for number in range(len(table))]
    places = [f"row {name}" for name in names]
    labels = rows.labels(
        classes=classes.names,
        category_ids=classes.ids,
        image_ids=_ids(table, places, problems),
        files=names,
        sizes=_sizes(table, places, problems),
    )
    path, _ = split_name(table.spec.removeprefix("hf:"))
    return Annotated(
        labels=labels, folder=Path(path), origin=Path(table.spec), places=places, archives=TablePlace(table)
    )


class _Classes:
    """What the classes are called.

    Attributes:
        field: What the class of an object is called.
        names: Names of the classes.
        ids: Id of each class.
    """

    def __init__(self, table: Table) -> None:
        feature = table.rows.features[OBJECTS]
        fields = feature if isinstance(feature, dict) else feature.feature
        self.field = next((name for name in CATEGORIES if name in fields), "")
        if not self.field or "bbox" not in fields:
            raise DataError(f"{table.spec}: objects have {', '.join(map(shown, fields))}; they need bbox and category")
        kind = fields[self.field]
        kind = getattr(kind, "feature", kind)  # an object of lists
        stated: list[str] | None = getattr(kind, "names", None)
        values = _found(table, self.field) if stated is None else list(range(len(stated)))
        self.names = stated or list(map(str, values))
        numbered = [value for value in values if isinstance(value, int)]
        self.ids = numbered if len(numbered) == len(values) else list(range(len(values)))
        self._number = {value: number for number, value in enumerate(values)}

    def number(self, value: object) -> int | None:
        """Return the number of a class; `None` if there is no such class."""
        return self._number.get(value) if isinstance(value, int | str) else None


def _found(table: Table, field: str) -> list[Any]:
    """Return what objects give as their classes, sorted."""
    values = (record.get(field) for objects in _objects(table) for record in objects)
    # A column holds values of one type.
    return sorted({value for value in values if isinstance(value, int | str)})


def _objects(table: Table) -> Iterator[list[dict[str, Any]]]:
    """Yield the objects of each row."""
    column = table.rows.select_columns([OBJECTS]).with_format(None)
    for batch in column.iter(batch_size=TOGETHER):
        for value in batch[OBJECTS]:
            yield _listed(value or [])


def _listed(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return [record or {} for record in value]
    count = max((len(values or ()) for values in value.values()), default=0)
    return [
        {name: values[place] for name, values in value.items() if place < len(values or ())} for place in range(count)
    ]


def _add(record: dict[str, Any], image: int, where: str, classes: _Classes, rows: Rows, problems: Problems) -> None:
    before = len(problems)
    label = classes.number(record.get(classes.field))
    if label is None:
        remedy = f"must be one of {len(classes.names)} classes"
        problems.add(f"{where}.{classes.field}", shown(record.get(classes.field)), remedy)
    box = record.get("bbox") or []
    numbers = [number for value in box if (number := finite_number(value)) is not None and abs(number) <= LARGEST]
    if len(numbers) != 4 or len(box) != 4 or min(numbers[2:]) < 0:
        problems.add(f"{where}.bbox", shown(box), BOX)
    # A column has an entry in every row, and null where a file would say nothing.
    stated = {name: value for name, value in record.items() if value is not None}
    flags = [flag_in(stated, name, where, problems) for name in CROWD]
    area = area_in(stated, where, problems)
    if len(problems) == before and label is not None:
        rows.add(image, label, numbers, where, area=area, crowd=any(flags))


def _ids(table: Table, places: Sequence[str], problems: Problems) -> list[Any]:
    """Return the ids that a table gives its images, or the numbers of their rows where it has none."""
    stated = list(table.rows["image_id"]) if "image_id" in table.rows.features else []
    if all(value is None for value in stated):
        return list(range(len(table)))
    first: dict[Any, str] = {}
    for value, where in zip(stated, places, strict=True):
        key = image_id_in({"image_id": value}, "image_id", where, problems)
        if key in first:
            problems.add(
                f"{where}.image_id", f"{shown(key)} is also the id of {first[key]}", "give every image its own id"
            )
        elif key is not None:
            first[key] = where
    return list(first) if len(first) == len(table) else list(range(len(table)))


def _sizes(table: Table, places: Sequence[str], problems: Problems) -> list[tuple[int, int]]:
    """Return the stated height and width of each image; zeros where a table states none."""
    there = [side for side in ("height", "width") if side in table.rows.features]
    columns = [table.rows[side] for side in there]
    rows = zip(*columns, strict=True) if there else ((),) * len(table)
    return [
        size_in(dict(zip(there, row, strict=True)), where, problems) for row, where in zip(rows, places, strict=True)
    ]
