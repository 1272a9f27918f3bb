"""Which class of one numbering is which of another."""

import json

from ssldet.classes import match_classes


def test_classes_are_found_by_name_whatever_their_order_and_spelling() -> None:
    rows = match_classes(("", "person", "potted plant", "airplane", "Dog"), ("dog", "aeroplane", "pottedplant", "yak"))
    assert rows.rows == (4, 3, 2, None)
    assert (rows.found, rows.fresh, rows.unused) == (("dog", "aeroplane", "pottedplant"), ("yak",), ("person",))
    assert str(rows) == (
        "3 of 4 classes found by name among 5; rows: dog from 4 (Dog), aeroplane from 3 (airplane), "
        "pottedplant from 2 (potted plant); new: yak; left behind: person"
    )
    assert json.loads(json.dumps(rows.to_json())) == {
        "rows": {"dog": 4, "aeroplane": 3, "pottedplant": 2, "yak": None},
        "unused": ["person"],
    }


def test_an_exact_name_goes_before_a_similar_one_and_two_similar_ones_mean_none() -> None:
    assert match_classes(("tv", "TV"), ("TV", "tv", "tvmonitor")).rows == (1, 0, None)
    assert match_classes(("cat", "cat"), ("cat",)).rows == (None,)
    assert match_classes(("", ""), ("", "cat")).rows == (None, None)
