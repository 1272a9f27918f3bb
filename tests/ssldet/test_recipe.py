"""Overrides, bounds, records: every problem at once, and a record that runs again."""

from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pytest

from ssldet.errors import ConfigError
from ssldet.hints import hints_of
from ssldet.recipe import Within, check, diff, dumps, fingerprint, from_document, leaves, load, override
from ssldet.registry import find


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: Annotated[float, Within(0, 1)] = 0.1
    mode: Literal["global", "own_group"] = "global"
    weights: str | None = None
    size: Annotated[int, Within(1)] | None = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    steps: Annotated[int, Within(1)] = 7
    scales: tuple[int, ...] = (320, 336)
    shuffle: bool = False
    name: str = "x"

    def problems(self) -> list[str]:
        return ["steps: thirteen is unlucky"] if self.steps == 13 else []


@dataclass(frozen=True, kw_only=True)
class Numbers:
    any: int = 0
    positive: Annotated[int, Within(1)] = 1
    seed: Annotated[int, Within(0, 2**62 + 1)] = 0


def test_overrides_read_text_by_type() -> None:
    got = override(
        Outer(),
        {
            "inner.rate": "1e-2",
            "inner.mode": "own_group",
            "steps": "1e3",
            "scales": "1, 2,3",
            "shuffle": "yes",
            "inner.weights": "file.pth",
            "inner.size": "none",
        },
    )
    assert got == Outer(
        inner=Inner(rate=0.01, mode="own_group", weights="file.pth", size=None),
        steps=1000,
        scales=(1, 2, 3),
        shuffle=True,
    )


def test_all_problems_come_at_once_with_suggestions() -> None:
    with pytest.raises(ConfigError) as caught:
        override(
            Outer(),
            {
                "inner.rat": "1",
                "inner.mode": "own_grup",
                "steps": "0",
                "shuffle": "perhaps",
                "innner.rate": 2,
                "inner": 1,
            },
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    assert "inner.rat: no such field (did you mean 'rate'?)" in text
    assert "inner.mode: 'own_grup' does not fit" in text
    assert "(did you mean 'own_group'?)" in text
    assert "steps: '0' does not fit; expects a whole number, at least 1" in text
    assert "innner: no such field (did you mean 'inner'?)" in text
    assert "inner: is a group of fields" in text


def test_what_no_single_field_knows_comes_with_the_rest() -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(), {"inner.rat": "1", "steps": "13"})
    assert [line.split(":")[0] for line in caught.value.problems] == ["inner.rat", "steps"]


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1.5", "x", None, True])
def test_a_bounded_number_refuses(value: object) -> None:
    with pytest.raises(ConfigError, match=r"inner\.rate: .* expects a number, from 0 to 1"):
        override(Outer(), {"inner.rate": value})


def test_whole_numbers_are_not_rounded() -> None:
    assert override(Outer(), {"steps": str(2**60 + 1)}).steps == 2**60 + 1
    with pytest.raises(ConfigError, match="steps"):
        override(Outer(), {"steps": "2.5"})


@pytest.mark.parametrize("value", [1764219453123456789, 2**63 - 1, -(2**53) - 1])
def test_a_large_whole_number_comes_back_as_it_was(value: int, tmp_path: Path) -> None:
    free = Numbers(any=value)
    path = tmp_path / "run.toml"
    path.write_text(dumps(free))
    assert load(Numbers, path) == free
    assert override(Numbers(), {"any": str(value)}) == override(Numbers(), {"any": f"{value}.0"}) == free


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        float(2**63),
        10**400,
        "1" * 400,
        "9" * 6000,
        pytest.param(10**6000, id="thousands of digits"),
        "1e999999999",
        "sNaN",
    ],
)
@pytest.mark.parametrize("field", ["any", "positive", "seed"])
def test_a_whole_number_that_no_tensor_holds_is_refused_in_one_short_line(value: object, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Numbers(), {field: value})
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 300
    assert "a whole number" in str(caught.value)
    assert value == "sNaN" or "64 bits" in str(caught.value)


def test_bounds_are_said_as_they_are() -> None:
    assert override(Numbers(), {"seed": 2**62 + 1}).seed == 2**62 + 1
    with pytest.raises(ConfigError, match=f"from 0 to {2**62 + 1},"):
        override(Numbers(), {"seed": 2**62 + 2})


@pytest.mark.parametrize("value", [10**400, "1" * 400, pytest.param(-(10**6000), id="thousands of digits")])
def test_a_number_beyond_every_float_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"inner\.rate: .* expects a number, from 0 to 1"):
        override(Outer(), {"inner.rate": value})


@pytest.mark.parametrize(
    "text", ["any = " + "1" * 400, "any = " + "1" * 6000, "any = " + "[" * 100_000], ids=lambda _: ""
)
def test_a_record_of_endless_digits_or_brackets_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.toml") as caught:
        load(Numbers, path)
    assert len(caught.value.problems) == 1


def test_check_asks_the_class_too() -> None:
    check(Outer())
    with pytest.raises(ConfigError, match="thirteen is unlucky"):
        check(Outer(steps=13))


def test_check_finds_values_that_only_python_could_set() -> None:
    with pytest.raises(ConfigError, match=r"inner\.rate"):
        check(Outer(inner=Inner(rate=7.0)))


def test_a_record_runs_again(tmp_path: Path) -> None:
    run = Outer(inner=Inner(size=None, weights="ä"), scales=(5,), shuffle=True)
    path = tmp_path / "run.toml"
    path.write_text(dumps(run, "made by a test\nof two lines"), encoding="utf-8")
    assert load(Outer, path) == run


def test_a_broken_record_names_file_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 0\nnme = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, path)
    assert len(caught.value.problems) == 2
    assert all("run.toml" in line for line in caught.value.problems)
    path.write_text("steps = ")
    with pytest.raises(ConfigError, match="not a readable recipe file"):
        load(Outer, path)


@dataclass(frozen=True, kw_only=True)
class Renewed:
    retired: ClassVar[dict[str, str]] = {"quick": "it is always quick now"}

    size: int = 3


def test_a_field_that_is_gone_is_read_past_and_not_set_any_more() -> None:
    assert from_document(Renewed, {"quick": True, "size": 4}) == Renewed(size=4)
    assert dumps(Renewed()) == "size = 3\n"
    with pytest.raises(ConfigError, match="quick: no such field"):
        override(Renewed(), {"quick": True})
    with pytest.raises(ConfigError, match="quicker: no such field"):
        from_document(Renewed, {"quicker": True})


def test_fingerprint_and_diff_see_every_field() -> None:
    base = Outer()
    for path, value in {"inner.rate": 0.2, "steps": 8, "scales": "1", "shuffle": True, "inner.size": "none"}.items():
        other = override(base, {path: value})
        assert fingerprint(other) != fingerprint(base)
        assert [change[0] for change in diff(base, other)] == [path]
    assert fingerprint(Outer()) == fingerprint(base)
    assert set(leaves(base)) == {
        *("inner.rate", "inner.mode", "inner.weights", "inner.size", "steps", "scales", "shuffle", "name")
    }


@pytest.mark.parametrize("word", ["none", "None", "null", "NULL", "", None])
def test_every_word_for_none_unsets_what_can_be_unset_and_nothing_else(word: str | None) -> None:
    got = override(Outer(), {"inner.weights": word, "inner.size": word})
    assert (got.inner.weights, got.inner.size) == (None, None)
    with pytest.raises(ConfigError, match=r"inner\.rate"):
        override(Outer(), {"inner.rate": word})


@pytest.mark.parametrize("word", ["none", "None", "NULL", "null", ""])
def test_a_field_that_may_be_none_takes_every_word_for_it(word: str) -> None:
    for name in ("random_query_patch/small", "detection/small", "pseudo_boxes/tiny", "one_shot/voc"):
        run = find("ssldet.recipes", name)()
        may_be_none = [path for path, hint in _hints(run) if type(None) in get_args(hint)]
        assert {"budget.epochs", "checkpoint.best_of", "detector.backbone.weights"} <= set(may_be_none)
        for path in may_be_none:
            assert leaves(override(run, {path: word}))[path] == "none", path


def _hints(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in hints_of(type(config)).items():
        value = getattr(config, name)
        if is_dataclass(value):
            yield from _hints(value, f"{prefix}{name}.")
        else:
            yield prefix + name, hint
