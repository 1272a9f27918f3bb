"""Problems of every kind of field: gathered, sliced, moved, compared, drawn, and emptied of pixels."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest
import torch

from ssldet.data.collate import collate, of_one_size, take
from ssldet.data.problems import pictures, same, without_pixels
from ssldet.types import Batch, Gather, Problem, Sample, Targets

SIZES = ((5, 7), (6, 4), (5, 7))


@dataclass(frozen=True, kw_only=True)
class Everything(Problem):
    """One field of each kind, some of which may be absent."""

    looks: Annotated[Any, Gather.PIXELS]
    several: Annotated[Any, Gather.PIXELS]
    numbers: Annotated[Any, Gather.STACK]
    absent: Annotated[Any, Gather.STACK] = None
    name: Annotated[Any, Gather.LIST]
    other: Annotated[Any, Gather.SAMPLE]
    large: Annotated[Any, Gather.ORIGINAL] = None


def plain(height: int, width: int, value: int, problem: Problem | None = None) -> Sample:
    return Sample(
        image=torch.full((3, height, width), value, dtype=torch.uint8),
        targets=Targets(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([value])),
        key=f"image {value}",
        original_size=(height, width),
        problem=problem,
    )


def sample(number: int, **changes: Any) -> Sample:
    height, width = SIZES[number]
    problem = Everything(
        looks=torch.full((2, 3, 4, 3), number, dtype=torch.uint8),
        several=(
            torch.full((1, 3, 8, 6), number, dtype=torch.uint8),
            torch.full((3, 3, 2, 2), number, dtype=torch.uint8),
        ),
        numbers=torch.arange(3.0) + number,
        name=f"name {number}",
        other=plain(height + 2, width + 3, 10 + number),
        large=plain(20, 30, 20 + number) if number else None,
    )
    return plain(height, width, number, replace(problem, **changes))


def gathered() -> tuple[Batch, Everything]:
    batch = collate([sample(number) for number in range(3)])
    assert isinstance(batch.problem, Everything)
    return batch, batch.problem


def test_every_field_gathers_as_it_says() -> None:
    _, problem = gathered()
    assert problem.looks.shape == (3, 2, 3, 4, 3)
    assert [tuple(images.shape) for images in problem.several] == [(3, 1, 3, 8, 6), (3, 3, 3, 2, 2)]
    assert problem.numbers[:, 0].tolist() == [0, 1, 2]
    assert problem.absent is None
    assert problem.name == ["name 0", "name 1", "name 2"]
    assert isinstance(problem.other, Batch)
    assert problem.other.images.shape == (3, 3, 8, 10), "the second view has a canvas of its own"
    assert problem.other.keys == ["image 10", "image 11", "image 12"]
    assert [one and one.key for one in problem.large] == [None, "image 21", "image 22"]


def test_parts_of_one_size_carry_their_own_problems() -> None:
    batch, _ = gathered()
    for places, part in of_one_size(batch):
        assert isinstance(part.problem, Everything)
        assert part.problem.name == [f"name {place}" for place in places]
        large = [one.key if one else None for one in part.problem.large]
        assert large == [f"image {20 + place}" if place else None for place in places]
        assert part.problem.numbers[:, 0].tolist() == places
        assert part.problem.looks[:, 0, 0, 0, 0].tolist() == places
        assert [images[:, 0, 0, 0, 0].tolist() for images in part.problem.several] == [places, places]
        assert part.problem.other.keys == [f"image {10 + place}" for place in places]
        assert not part.problem.other.padding.any(), "views of one size need no padding either"


def test_a_part_lies_on_the_smallest_canvas_that_holds_it() -> None:
    batch, _ = gathered()
    part = take(batch, [1, 0])
    assert part.images.shape == (2, 3, 6, 7)
    assert part.keys == ["image 1", "image 0"]
    assert take(batch, [1]).images.shape == (1, 3, 6, 4)


def test_all_tensors_move_however_deep() -> None:
    batch, _ = gathered()
    moved = batch.to("meta").problem
    assert isinstance(moved, Everything)
    assert moved.looks.is_meta
    assert all(images.is_meta for images in moved.several)
    assert moved.other.images.is_meta
    assert moved.name == ["name 0", "name 1", "name 2"]
    assert not moved.large[1].image.is_meta, "what is large stays"


@pytest.mark.parametrize(
    "changes",
    [
        {"looks": torch.zeros(2, 3, 4, 3, dtype=torch.uint8)},
        {"several": (torch.zeros(1, 3, 8, 6, dtype=torch.uint8),)},
        {"numbers": torch.zeros(3)},
        {"absent": torch.zeros(1)},
        {"name": "another"},
        {"other": plain(8, 10, 9)},
        {"large": plain(8, 10, 9)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_samples_are_told_apart_by_every_field(changes: dict[str, Any]) -> None:
    assert same(sample(1), sample(1))
    assert not same(sample(1), sample(1, **changes))
    assert not same(sample(1), replace(sample(1), problem=None))


def test_scoring_gets_everything_but_pixels() -> None:
    batch, problem = gathered()
    left = without_pixels(batch)
    assert isinstance(left.problem, Everything)
    assert left.images.numel() == left.problem.looks.numel() == left.problem.other.images.numel() == 0
    assert [images.numel() for images in left.problem.several] == [0, 0]
    assert torch.equal(left.problem.numbers, problem.numbers)
    assert left.problem.name == problem.name
    assert left.problem.other.targets[2].labels.tolist() == [12]
    assert left.problem.large[0] is None
    assert left.problem.large[1].image.numel() == 0
    assert left.problem.large[1].targets.labels.tolist() == [21]


def test_previews_show_all_pixels_at_the_size_of_the_largest() -> None:
    batch, _ = gathered()
    shown = pictures(batch, 1)
    assert shown.shape == (2 + 1 + 3 + 1, 3, 8, 7)
    assert shown[:, 0, 0, 0].tolist() == [1] * 6 + [11]
    assert len(pictures(collate([plain(4, 4, 1)]), 0)) == 0


def test_what_does_not_gather_is_said() -> None:
    with pytest.raises(ValueError, match=r"Everything\.numbers of one batch .*'image 0'.*\(3,\).*'image 1'.*\(4,\)"):
        collate([sample(0), sample(1, numbers=torch.zeros(4))])
    with pytest.raises(ValueError, match=r"Everything\.absent of one batch"):
        collate([sample(0), sample(1, absent=torch.zeros(2))])
    with pytest.raises(ValueError, match="different problems: Everything, NoneType"):
        collate([sample(0), plain(4, 4, 1)])


@dataclass(frozen=True, kw_only=True)
class Unsaid(Problem):
    """A field that does not say how it gathers."""

    numbers: torch.Tensor


def test_a_field_that_does_not_say_how_it_gathers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Unsaid\.numbers does not say how it gathers.*Gather\.STACK"):
        collate([plain(4, 4, 1, Unsaid(numbers=torch.zeros(2)))])


def test_places_that_hold_nothing_are_not_shown() -> None:
    looks = torch.zeros(4, 3, 4, 3, dtype=torch.uint8)
    looks[0], looks[2] = 9, 5  # the second is a black picture, the last one holds nothing
    batch = collate([replace(plain(5, 7, 1), problem=Everything(**fields_with(looks)))])
    assert pictures(batch, 0)[:, 0, 0, 0].tolist()[:3] == [9, 0, 5]
    assert len(pictures(batch, 0)) == len(pictures(gathered()[0], 1)) + 1


def fields_with(looks: torch.Tensor) -> dict[str, Any]:
    problem = sample(1).problem
    assert isinstance(problem, Everything)
    return vars(problem) | {"looks": looks}
