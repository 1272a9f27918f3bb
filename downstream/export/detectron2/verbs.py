"""`ssldet detectron2 …`: print the paths of our configurations for its tools, or train without the tools."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ssldet.errors import ConfigError, SetupError, suggest

app = App(
    name="ssldet detectron2",
    help="Train and evaluate with detectron2.",
    help_format="plaintext",
    version_flags=[],
)
CONFIGS = Path(__file__).parent / "configs"


@app.command
def config(name: str = "") -> None:
    """Print the path of a configuration, for --config-file of detectron2's tools; without a name, list them.

    Args:
        name: NAME for tools/lazyconfig_train_net.py, NAME.yaml for tools/train_net.py.
    """
    sys.stdout.write(f"{path_of(name)}\n" if name else "".join(f"{other}\n" for other in names()))


@app.command
def train(
    name: str, *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)], eval_only: bool = False
) -> None:
    """Train and evaluate as tools/lazyconfig_train_net.py does, in this process, on one device.

    Args:
        name: Name of a LazyConfig; see `ssldet detectron2 config`.
        overrides: Entries, such as train.init_checkpoint=FILE.pth "data.train=[voc:ROOT:train]".
        eval_only: Evaluate `train.init_checkpoint` and stop.
    """
    require()
    from downstream.export.detectron2.training import run

    run(path_of(name.removesuffix(".py")), overrides, eval_only=eval_only)


def names() -> list[str]:
    """Return the names of all configurations; those that end in `.yaml` are for tools/train_net.py."""
    files = sorted(CONFIGS.glob("[a-z]*.py")) + sorted(CONFIGS.glob("*.yaml"))
    return [path.stem if path.suffix == ".py" else path.name for path in files]


def path_of(name: str) -> Path:
    """Return the path of a configuration.

    Args:
        name: Name of a configuration, one of `names()`.

    Raises:
        ConfigError: There is no configuration of that name.
    """
    if name not in names():
        raise ConfigError(f"no configuration {name!r}{suggest(name, names())}; there are {', '.join(names())}")
    return CONFIGS / (name if name.endswith(".yaml") else f"{name}.py")


def require() -> None:
    """Check that detectron2 is installed.

    Raises:
        SetupError: detectron2 is not installed; the message says how to install it.
    """
    if find_spec("detectron2") is None:
        raise SetupError("detectron2 is not installed; 'ssldet doctor detectron2' says how to install it")
