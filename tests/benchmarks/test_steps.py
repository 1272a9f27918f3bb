"""One optimiser step of a recipe: time, memory, and the table."""

from rich.console import Console

from benchmarks.steps import RECIPES, measure, table


def test_steps_are_measured_and_shown_beside_the_first() -> None:
    found = measure(RECIPES[0], size=32, batch=2, repeats=1)
    assert found["seconds"] > 0
    assert found["parameters"] > 100_000
    assert found["bytes"] >= 0
    console = Console(record=True, width=100)
    double = {name: 2 * value for name, value in found.items()} | {"bytes": 3e6}
    console.print(table({"one": found | {"bytes": 1e6}, "two": double}, "title"))
    (row,) = [line for line in console.export_text().splitlines() if "two" in line]
    assert "2.00" in row
    assert "3.00" in row
