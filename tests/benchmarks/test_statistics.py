from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from scipy import stats

from benchmarks.plan import Arm
from benchmarks.report.contents import contents, result_table
from benchmarks.results import Results, Row
from benchmarks.statistics import (
    Difference,
    differences,
    differences_of_tasks,
    differences_over_shares,
    interval,
    judge,
    smallest_visible,
    summaries,
)
from benchmarks.suite import Claim


def measured(
    values: Mapping[str, Sequence[float | None]], claims: Sequence[Mapping[str, Any]] = (), models: Sequence[str] = "m"
) -> Results:
    """Results of one task, the same for every model; a value of none is a row that failed."""
    rows = [
        Row(
            arm=Arm(method=method, model=model, downstream="task", fraction=1.0, seed=seed, jobs=("x",)),
            status="failed" if value is None else "finished",
            results={} if value is None else {"AP": value},
            seconds=10.0,
        )
        for model in models
        for method, column in values.items()
        for seed, value in enumerate(column)
    ]
    methods = [{"name": name, "role": name if name in {"none", "backbone"} else "method"} for name in values]
    tasks = [{"name": "task", "metric": "AP"}]
    suite = {"downstreams": tasks, "claims": list(claims), "methods": methods, "models": list(models), "tables": []}
    return Results(suite=suite, code="", hardware={}, rows=rows, runs={}, recipes={})


def test_a_summary_is_of_finished_rows() -> None:
    (summary,) = summaries(measured({"none": [0.1, 0.2, None, 0.6]}))
    assert summary.values == (0.1, 0.2, 0.6)
    assert summary.mean == pytest.approx(0.3)
    assert summary.spread == pytest.approx(0.264575, rel=1e-4)
    assert summary.interval is not None
    # 4.3027 is Student's factor for three values.
    assert summary.interval == pytest.approx((0.3 - 4.3027 * 0.152753, 0.3 + 4.3027 * 0.152753), abs=1e-4)


def test_an_interval_of_three_values_holds_the_mean_of_their_population_as_often_as_it_says() -> None:
    draws = stats.norm.rvs(size=(1000, 3), random_state=1)
    held = sum(low < 0 < high for low, high in (interval(list(draw)) or (0, 0) for draw in draws))
    assert 930 <= held <= 970
    assert interval([0.5]) is None
    assert interval([0.5, 0.5]) == (0.5, 0.5)


def test_the_smallest_visible_difference_is_significant_four_times_of_five() -> None:
    draws = stats.norm.rvs(size=(2000, 3), random_state=2)
    unit = smallest_visible([-1.0, 0.0, 1.0])  # whose spread is 1
    assert unit is not None
    seen = sum(stats.ttest_1samp(draw + unit, 0.0).pvalue < 0.05 for draw in draws)
    assert 0.77 <= seen / len(draws) <= 0.83
    assert smallest_visible([-0.1, 0.0, 0.1]) == pytest.approx(unit / 10)
    assert smallest_visible([0.2, 0.2]) == 0.0
    assert smallest_visible([0.2]) is None


def test_seeds_that_begin_with_the_same_of_several_pretrainings_count_as_one() -> None:
    results = measured({"none": [0.1, 0.2, 0.3, 0.1, 0.2], "a": [0.2, 0.4, 0.6, 0.4, 0.2]})
    gains = [0.1, 0.2, 0.3, 0.3, 0.0]

    def difference(pretrainings: Sequence[str]) -> Difference:
        rows = [
            replace(
                row,
                arm=replace(
                    row.arm,
                    jobs=((pretrainings[row.arm.seed],) if row.arm.method == "a" else ())
                    + (f"{row.arm.method}{row.arm.seed}",),
                ),
            )
            for row in results.rows
        ]
        (found,) = differences(replace(results, rows=rows), "none")
        return found

    several = difference("xyzxy")
    assert several.values == pytest.approx(gains)
    assert several.independent == pytest.approx([0.2, 0.1, 0.3])
    assert several.p == pytest.approx(stats.ttest_1samp([0.2, 0.1, 0.3], 0).pvalue)
    assert several.interval == pytest.approx(interval([0.2, 0.1, 0.3]))
    for alike in ("xxxxx", "vwxyz"):
        assert difference(alike).independent == pytest.approx(gains)


def test_differences_are_paired_by_seed_and_adjusted() -> None:
    results = measured({"none": [0.1, 0.5, 0.9], "a": [0.21, 0.6, 1.0], "b": [0.1, None, 0.7]})
    found = {entry.method: entry for entry in differences(results, "none")}
    assert found["a"].values == pytest.approx((0.11, 0.1, 0.1))
    assert found["b"].values == pytest.approx((0.0, -0.2))
    raw = [stats.ttest_rel([0.21, 0.6, 1.0], [0.1, 0.5, 0.9]).pvalue, stats.ttest_rel([0.1, 0.7], [0.1, 0.9]).pvalue]
    assert [found["a"].p, found["b"].p] == pytest.approx(list(stats.false_discovery_control(raw)))
    assert found["a"].words().startswith("significantly better")
    assert found["b"].words().startswith("worse in the mean, not significant")
    limit = smallest_visible([0.0, -0.2], comparisons=2)
    assert limit is not None
    assert limit > (smallest_visible([0.0, -0.2]) or 0)
    assert found["b"].words().endswith(f", less than {100 * limit:.2f} points would mostly be missed)")
    assert differences(results, "absent") == []


@pytest.mark.parametrize(
    ("kind", "higher", "words"),
    [
        ("at least", [0.2, 0.31, 0.4], "reproduces (+10"),
        ("at least", [0.0, 0.11, 0.2], "does not reproduce: reversed (-"),
        ("at least", [0.5, 0.1, 0.3], "not shown: higher in the mean, not significant"),
        ("at least", [0.3, 0.1, 0.1], "not shown: reversed in the mean"),
        ("at least", [0.3, None, None], "one seed: not decided"),
        ("at least", [None, None, None], "not measured"),
        ("no gain", [0.2, 0.31, 0.4], "does not reproduce: there is a gain"),
        ("no gain", [0.5, 0.1, 0.3], "no gain is shown (+10.00"),
        ("at least", [0.1, 0.2, 0.3], "not shown: equal in the mean"),
    ],
)
def test_a_claim_is_judged_by_what_was_measured(
    kind: Literal["at least", "no gain"], higher: list[float | None], words: str
) -> None:
    claim = Claim(words="w", higher="a", lower="none", kind=kind)
    assert judge(claim, measured({"none": [0.1, 0.2, 0.3], "a": higher}), "task").startswith(words)


def test_several_models_are_judged_and_told_each_by_its_name() -> None:
    values = {"none": [0.1, 0.2, 0.3], "a": [0.2, 0.31, 0.4]}
    claim = Claim(words="w", higher="a", lower="none")
    one, both = measured(values), measured(values, models=("m", "other"))
    assert judge(claim, one, "task").startswith("reproduces (")
    first, second = judge(claim, both, "task").split("; ")
    assert first.startswith("m: reproduces (")
    assert second.startswith("other: reproduces (")
    assert "model" not in result_table(one).columns
    shown = result_table(both)
    assert [row[shown.columns.index("model")] for row in shown.rows] == ["m", "m", "other", "other"]
    assert {len(row) for row in shown.rows} == {len(shown.columns)}


def test_shares_of_labels_are_judged_and_told_each_by_its_share() -> None:
    results = measured({"none": [0.1, 0.2, 0.3], "a": [0.2, 0.31, 0.4]})
    few = [replace(row, arm=replace(row.arm, fraction=0.1)) for row in results.rows]
    claim = Claim(words="w", higher="a", lower="none")
    whole, tenth = judge(claim, replace(results, rows=[*results.rows, *few]), "task").split("; ")
    assert whole.startswith("100% of labels: reproduces (")
    assert tenth.startswith("10% of labels: reproduces (")


def test_an_interval_counts_seeds_that_share_one_of_several_pretrainings_as_one() -> None:
    results = measured({"a": [0.1, 0.3, 0.5, 0.7]})
    rows = [replace(row, arm=replace(row.arm, jobs=("xxyy"[row.arm.seed], str(row.arm.seed)))) for row in results.rows]
    (summary,) = summaries(replace(results, rows=rows))
    assert summary.values == (0.1, 0.3, 0.5, 0.7)
    assert summary.interval == pytest.approx(interval([0.2, 0.6]))


def test_two_tasks_are_compared_method_by_method_and_seed_by_seed() -> None:
    results = measured({"a": [0.1, 0.2, 0.3], "b": [0.5, 0.5, None]})
    suite = {**results.suite, "downstreams": [{"name": name, "metric": "AP"} for name in ("task", "longer")]}
    more = [
        replace(row, arm=replace(row.arm, downstream="longer"), results={"AP": row.results["AP"] + 0.1 * row.arm.seed})
        for row in reversed(results.rows)
        if row.results
    ]
    both = replace(results, suite=suite, rows=[*results.rows, *more])
    found = {one.method: one for one in differences_of_tasks(both, "longer", "task")}
    assert found["a"].values == pytest.approx((0.2, 0.1, 0.0))
    assert found["b"].values == pytest.approx((0.1, 0.0))
    assert found["a"].baseline == "task"


def test_what_there_was_nothing_to_measure_by_is_no_value_and_is_told() -> None:
    results = measured({"none": [0.1, -1, 0.3]})
    (summary,) = summaries(results)
    assert summary.values == (0.1, 0.3)
    (absent,) = (part for part in contents(whole(results)) if part.heading == "Without result")
    assert absent.table is not None
    assert absent.table.rows == [("task", "none", 1, "finished", "nothing to measure by AP")]


def test_results_in_part_are_told_as_such() -> None:
    results = whole(measured({"none": [0.1, 0.2, None]}))
    assert contents(results)[0].text == "In part: 2 of 3 rows have a result."


def whole(results: Results) -> Results:
    """Results with all that a report tells of a suite."""
    suite = {"name": "s", "rates": [], "seeds": [0, 1, 2], "pretrainings": 1, "fractions": [1.0]}
    methods = [{"title": "", "missing": "", "cite": []} | method for method in results.suite["methods"]]
    tasks = [{"cite": []} | task for task in results.suite["downstreams"]]
    hardware = {"processor": "p", "cores": 1, "system": "s", "python": "3"}
    return replace(
        results,
        suite={**results.suite, **suite, "methods": methods, "downstreams": tasks},
        hardware=hardware,
        runs={"x": RECORD},
    )


RECORD: Mapping[str, Any] = {
    "purpose": {"verb": "finetune"},
    "curve": [],
    "batch": 1,
    "images": 1,
    "seconds": 1.0,
    "steps": 1,
    "device": "cpu",
    "versions": {},
    "status": "finished",
    "results": {},
    "losses": [],
    "title": "t",
}


def test_shares_of_labels_are_compared_in_their_mean_seed_by_seed() -> None:
    results = measured({"none": [0.1, 0.2, 0.3], "a": [0.2, 0.31, 0.4], "b": [0.2, 0.3, 0.4]})
    few = [
        replace(row, arm=replace(row.arm, fraction=0.1), results={"AP": row.results["AP"] * 2})
        for row in results.rows
        if row.arm.method != "b"
    ]
    (found,) = differences_over_shares(replace(results, rows=[*results.rows, *few]), "none", "task")
    assert found.method == "a"  # b was not measured with every share
    assert found.values == pytest.approx((0.15, 0.165, 0.15))
    assert found.p == pytest.approx(stats.ttest_1samp(found.values, 0).pvalue)
    assert found.interval == pytest.approx(interval(found.values))
