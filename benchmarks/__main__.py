"""command line -> one function per command: `python -m benchmarks compare SUITE`."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from benchmarks.suite import Scale
from ssldet.errors import ConfigError, SsldetError, StoppedError
from ssldet.escapes import counted

app = App(
    name="python -m benchmarks",
    help="Compare ways to pretrain detectors: run a suite, go on with it, report it.",
    help_format="plaintext",
    version_flags=(),
)

Flag = Annotated[bool, Parameter(negative=())]
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@app.command(name="list")
def list_() -> None:
    """List the suites."""
    from benchmarks.suites import SUITES

    width = max(map(len, SUITES))
    for name, function in SUITES.items():
        sys.stdout.write(f"{name:<{width}}  {(function.__doc__ or '').strip().splitlines()[0]}\n")


@app.command
def compare(
    suite: str,
    *,
    scale: Scale = "tiny",
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    out: Path = Path("runs/benchmarks"),
    seeds: int | None = None,
    dry_run: Flag = False,
    budget: str | None = None,
    jobs: int = 1,
    filter_: Annotated[str, Parameter(name="--filter")] = "*",
    launcher: str = "",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Run a suite, or the rest of it; after any interruption the same command continues.

    Args:
        suite: A name from 'list'.
        scale: full as published, tiny with the same axes in minutes.
        data: NAME=SPECIFICATION for each data set of the suite; commas separate several specifications.
        out: Folder of runs and reports; suites that share it share runs.
        seeds: Number of seeds.
        dry_run: Only print the runs to make, and how long they will take.
        budget: Time to spend, such as 90min or 8h; the same command continues with the rest.
        jobs: Number of processes at a time.
        filter_: Shell pattern of METHOD/MODEL/TASK/FRACTION/seed-N; rows of earlier filters stay in the results.
        launcher: Command that runs each process, such as 'srun --gres=gpu:1 {command}'.
        json_: Print one JSON object.
    """
    from benchmarks.comparing import FinishedComparison
    from benchmarks.comparing import compare as run_suite

    result = run_suite(
        suite, scale=scale, data=_places(data or []), out=out, seeds=seeds, dry_run=dry_run, budget=_seconds(budget),
        jobs=jobs, only=filter_, launcher=launcher,
    )  # fmt: skip
    sys.stdout.write((json.dumps(result.to_json()) if json_ else str(result)) + "\n")
    if isinstance(result, FinishedComparison) and (failed := result.failed):
        sys.stderr.write(f"error: {counted(failed, 'row')} without result, because runs failed; see the report\n")
        sys.exit(1)


@app.command
def report(results: Path, *, out: Path | None = None, pictures: Path | None = None) -> None:
    """Write the report of existing results.

    Args:
        results: A results.json, or its folder.
        out: Folder to write to; default: beside the results.
        pictures: Folder of the comparison, for images with detections.
    """
    from benchmarks.report import write_reports
    from benchmarks.results import read_results

    read = read_results(results)
    folder = out or (results if results.is_dir() else results.parent)
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{write_reports(read, folder, pictures=pictures)}\n")


@app.command
def tables(*pages: Path) -> None:
    """Write the tables of pages from the committed results; a table stands between `<!-- table: NAME -->` and an end.

    Args:
        pages: Markdown files; default: README.md and those in docs, and the reports of suites in docs/results too.
    """
    from benchmarks.report import write_page
    from benchmarks.report.pages import RESULTS, write_tables
    from benchmarks.results import read_results
    from ssldet.disk import Disk, write_whole
    from ssldet.regular import read_text

    for folder in () if pages else sorted(Path("docs/results").iterdir()):
        write_page(read_results(RESULTS / f"{folder.name}.json"), folder)
    for page in pages or (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        before = read_text(page)
        if (after := write_tables(before)) != before:
            write_whole(page, after.encode(), Disk())
            sys.stdout.write(f"{page}\n")


@app.command
def speed(
    *,
    out: Path = Path("benchmarks/results/speed.json"),
    images: int = 5000,
    repeats: int = 5,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    check: Flag = False,
) -> None:
    """Measure what is done in a fast way against the plain one, in turns, on one thread of the CPU.

    Args:
        out: JSON file, written after each row; rows of parts that are left out stay in it.
        images: Images of the evaluation.
        repeats: Rounds of the short measurements.
        only: Parts: views, loader, backbone, matching, sets, optimiser, sampling, processes, step, engine, checkpoint,
            huggingface, evaluation.
        json_: Print each row as one JSON object.
        check: Only measure parts that take seconds, and fail if a ratio fell by a third below that in the file.
    """
    import tempfile

    from benchmarks.timing.speed import Amount, fallen, measure

    with tempfile.TemporaryDirectory() as folder:
        amount = Amount(images=images, repeats=repeats, folder=Path(folder))
        if check:
            slower = fallen(out, amount, only or ())
            sys.stdout.writelines(f"{line}\n" for line in slower or ["nothing fell by a third"])
            sys.exit(1 if slower else 0)
        for row in measure(out, amount, only or ()):
            if "left_out" in row:
                text = f"left out  {row['part']}: {row['left_out']}"
            else:
                spread = f"{row['ratio']:8.2f}  ({row['low']:.2f} to {row['high']:.2f})"
                text = f"{spread}  {row['work']}, against {row['against']}"
            sys.stdout.write(f"{json.dumps(row) if json_ else text}\n")
            sys.stdout.flush()


@app.command
def costs(
    *,
    out: Path = Path("benchmarks/results/costs.json"),
    figure: Path = Path("docs/images/costs.svg"),
    steps: int = 3,
) -> None:
    """Measure time and memory of a pretraining step by batch, image size, queries, patches and layers, on one thread.

    Args:
        out: JSON file, written after each point.
        figure: SVG file to draw the points into, with straight lines through them.
        steps: Steps of each point, of which the median counts.
    """
    import tempfile

    from benchmarks.report.costs import drawing_of_costs
    from benchmarks.timing.costs import measure_costs
    from ssldet.disk import Disk, write_whole
    from ssldet.regular import read_text

    with tempfile.TemporaryDirectory() as folder:
        for row in measure_costs(out, Path(folder), steps):
            sys.stdout.write(f"{row['seconds']:8.3f} s {row['bytes'] / 1e6:8.0f} MB  {row['axis']} {row['value']}\n")
            sys.stdout.flush()
    write_whole(figure, drawing_of_costs(json.loads(read_text(out))).encode(), Disk())


@app.command
def record(
    *,
    out: Path = Path("benchmarks/results/recorded.json"),
    runs: Path = Path("runs/recorded"),
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    most_steps: int | None = None,
) -> None:
    """Make the runs behind figures of the documentation that no suite has.

    Args:
        out: JSON file, written after each record; those of earlier calls stay in it.
        runs: Folder of the runs, which must not have held any before.
        only: Records: collapse, one_shot, one_shot_cards, panoptic, backbones.
        data: photos=folders:ROOT with one folder per class, cards= and cards_val= with labels.
        most_steps: Steps after which any run ends, to rehearse.
    """
    from benchmarks.recorded import Recorder
    from benchmarks.recorded import record as record_runs

    recorder = Recorder(folder=runs, places=_places(data or []), most_steps=most_steps)
    for name, row in record_runs(out, recorder, only or ()):
        sys.stdout.write(f"{name}  {json.dumps(row)}\n")
        sys.stdout.flush()


@app.command
def gpu(
    *,
    out: Path = Path("benchmarks/results/gpu.json"),
    minutes: float = 8.0,
    device: str = "cuda",
    tiny: Flag = False,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    runs: Path = Path("runs/benchmarks"),
    jobs: int = 1,
) -> None:
    """Measure training, memory, inference and transfer on an accelerator, in order of value, and stop in time.

    Args:
        out: JSON file, written after each part.
        minutes: Time to spend; a part that has begun is ended.
        device: Where to compute.
        tiny: Small networks and few steps, to rehearse.
        only: Parts: tests, steps, memory, against_transformers, transfer.
        data: images=, train= and val= for the suite ours/small, which the part transfer runs; labelled=, more_train=
            and more_val= add to it.
        runs: Folder of that suite's runs and reports.
        jobs: Number of its processes at a time.
    """
    import tempfile
    import time

    import torch

    from benchmarks.timing.bench import Bench
    from benchmarks.timing.gpu import measure

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device=torch.device(device), until=time.monotonic() + 60 * minutes, tiny=tiny, folder=Path(folder),
            places=_places(data or []), out=runs, jobs=jobs,
        )  # fmt: skip
        for row in measure(out, bench, only or ()):
            sys.stdout.write(f"{json.dumps(row)}\n")
            sys.stdout.flush()


def _places(pairs: list[str]) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ConfigError([f"--data: {pair!r} is not NAME=SPECIFICATION" for pair in wrong])
    return dict(pair.split("=", 1) for pair in pairs)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    unit = match[2] or "s" if match else ""
    if match is None or unit not in _UNITS:
        raise ConfigError(f"--budget: {text!r} is not a time; write 90min, 8h or 2d")
    return float(match[1]) * _UNITS[unit]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit codes are those of `ssldet`.

    Args:
        arguments: Arguments after the program's name; `None` means those of this process.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, SsldetError, OSError) as error:
        word = "stopped" if isinstance(error, StoppedError) else "error"
        sys.stderr.writelines(f"{word}: {line}\n" for line in str(error).splitlines())
        sys.exit(getattr(error, "exit_code", ConfigError.exit_code))


if __name__ == "__main__":
    main()
