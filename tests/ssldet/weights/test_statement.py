"""What files state about their model beside the tensors."""

from pathlib import Path
from typing import Any

import pytest

from ssldet.errors import CheckpointError
from ssldet.weights.statement import odd_entries, share_option, statement_in, whole_option

PATH = Path("model.pth")
SOUND = {"task": {"name": "detection"}, "classes": ["circle", "square"], "category_ids": [3, 7], "lineage": [{}]}


def test_what_we_wrote_is_returned_as_it_is() -> None:
    assert statement_in({"ssldet": SOUND, "nheads": 8}, PATH) == SOUND
    assert odd_entries(SOUND) == []


@pytest.mark.parametrize("options", [{}, {"ssldet": None}, {"ssldet": "task"}, {"nheads": 8}])
def test_a_file_of_another_project_states_nothing_in_our_words(options: dict[str, Any]) -> None:
    assert statement_in(options, PATH) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "detection"),
        ("task", 1),
        ("detector", []),
        ("classes", 5),
        ("classes", "circle"),
        ("classes", [1, 2]),
        ("classes", ["\ud800"]),
        ("category_ids", ["3"]),
        ("category_ids", [3.5]),
        ("category_ids", [True]),
        ("lineage", {}),
        ("lineage", [None]),
        ("choices", 0),
    ],
)
def test_an_entry_of_another_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"^model\.pth: its entry 'ssldet' holds no usable {name}; export"):
        statement_in({"ssldet": {**SOUND, name: value}}, PATH)


def test_options_are_what_the_file_says_or_what_is_usual() -> None:
    assert (whole_option({"nheads": 4}, "nheads", 8, PATH), whole_option({}, "nheads", 8, PATH)) == (4, 8)
    assert (share_option({"dropout": 0}, "dropout", 0.1, PATH), share_option({}, "dropout", 0.1, PATH)) == (0.0, 0.1)


@pytest.mark.parametrize("value", ["8", None, True, -1, [], float("nan"), 1.5])
def test_an_odd_option_is_named_with_its_value(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.pth: its option x=.* must be a positive whole number"):
        whole_option({"x": value}, "x", 8, PATH)
    with pytest.raises(CheckpointError, match=r"^model\.pth: its option x=.* must lie from 0 to below 1"):
        share_option({"x": value}, "x", 0.1, PATH)
