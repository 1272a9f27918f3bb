"""The options that several verbs share, described once, and what their text means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from ssldet.errors import ConfigError
from ssldet.escapes import shortened
from ssldet.recipe import whole_number


def _exactly(_: object, tokens: Sequence[Token]) -> int:
    """Read a whole number as `--set` does: `1e3` is one, and `2.5`, which the parser would round, is none."""
    text = tokens[0].value
    try:
        return whole_number(text)
    except ValueError as error:
        raise ValueError(f"{text!r}; expects a whole number") from error


def _step(kind: object, tokens: Sequence[Token]) -> int | str:
    """Read a step, or the word for the newest checkpoint; a converter within a union would not be asked."""
    return LATEST if tokens[0].value == LATEST else _exactly(kind, tokens)


LATEST = "latest"
"""What stands for the newest checkpoint in place of its step."""
Whole = Annotated[int, Parameter(converter=_exactly)]
"""A whole number on the command line."""
Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", consume_multiple=True, negative=(), help="Recipe fields, such as optim.lr=1e-4."),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="One JSON object on standard output.")]
Flag = Annotated[bool, Parameter(negative=())]
Out = Annotated[Path | None, Parameter(name="--out", help="Run folder to create; default: the next free one in runs/.")]
Steps = Annotated[Whole | None, Parameter(name="--steps", help="Length in optimiser steps.")]
Epochs = Annotated[float | None, Parameter(name="--epochs", help="Length in passes over the training set.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None,
    Parameter(name="--device", help="Where to compute; default: the recipe's."),
]
BatchSize = Annotated[Whole | None, Parameter(name="--batch-size", help="Images of one optimiser step.")]
Quiet = Annotated[bool, Parameter(name="--quiet", negative=(), help="Show problems only, no progress.")]
LoggerNames = Annotated[
    list[str] | None,
    Parameter(
        name="--logger", consume_multiple=True, negative=(), help="Where numbers go too; see: ssldet list loggers."
    ),
]
DryRun = Annotated[
    bool,
    Parameter(name="--dry-run", negative=(), help="Check everything, say what the run would do, and write nothing."),
]
Resume = Annotated[Path | None, Parameter(name="--resume", help="Run folder to go on with.")]
AtStep = Annotated[
    int | Literal["latest"] | None,
    Parameter(
        name="--step",
        converter=_step,
        help="Take a checkpoint of the run, which need not have finished: its step, or 'latest'.",
    ),
]
Data = Annotated[list[str], Parameter(consume_multiple=True, negative=())]
Which = Annotated[
    Literal["last", "best"], Parameter(help="Weights of a run: of its last step, or those that measured best.")
]
Tiles = Annotated[Whole | None, Parameter(name="--tiles", help="Side of the tiles of larger images, in pixels.")]
TileOverlap = Annotated[
    float | None, Parameter(name="--tile-overlap", help="Share of a tile that the next one shows too.")
]
Start = Annotated[
    str, Parameter(help="A run folder, a weights file (ours, DETR's, UP-DETR's, ONNX), hub:USER/NAME, or 'scratch'.")
]


def assignments(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return recipe fields and their values from words such as `optim.lr=1e-4`.

    Raises:
        ConfigError: Words without an equals sign, or fields that are set twice; lists all of them.
    """
    wrong = [f"--set {pair}: expects path=value, such as task.num_patches=5" for pair in pairs or () if "=" not in pair]
    values: dict[str, list[str]] = {}
    for path, value in (pair.split("=", 1) for pair in pairs or () if "=" in pair):
        values.setdefault(path, []).append(value)
    wrong += [
        f"--set {path}: is set {len(given)} times, to {', '.join(map(shortened, given))}; keep one of them"
        for path, given in values.items()
        if len(given) > 1
    ]
    if wrong:
        raise ConfigError(wrong)
    return {path: value for path, (value,) in values.items()}


def require_new(resume: Path | None) -> None:
    """Refuse a dry run of a run that goes on: all it could say was said when it began.

    Args:
        resume: Value of `--resume`.

    Raises:
        ConfigError: It was given.
    """
    if resume is not None:
        raise ConfigError("--dry-run is for a new run, --resume for one that began; leave one of them out")


def choices(pairs: Sequence[str] | None, **named: object) -> dict[str, object]:
    """Return recipe fields from `--set`, and from options of their own.

    Args:
        pairs: Words such as `optim.lr=1e-4`.
        named: Path with two underscores for a dot -> value; `None` where the option was not given.

    Raises:
        ConfigError: A field is given both ways, or a word has no equals sign.
    """
    given = {name.replace("__", "."): value for name, value in named.items() if value is not None}
    fields = assignments(pairs)
    if twice := sorted(given.keys() & fields.keys()):
        raise ConfigError([f"--set {path}: is given by an option too; leave one of them out" for path in twice])
    return {**fields, **given}
