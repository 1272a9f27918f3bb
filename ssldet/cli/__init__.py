"""command line -> the public function of each verb; parsing imports nothing heavy, so that it is quick."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from ssldet import registry, slurm
from ssldet.cli import data, looking, training, using
from ssldet.cli.console import delivered, logging_to_stderr, open_streams, report_error
from ssldet.errors import ConfigError, SsldetError, nearest

app = App(
    name="ssldet",
    help="Pretrain whole detection transformers on unlabelled images, then fine-tune, evaluate and export them.",
    help_epilogue=(
        "Any verb takes --help; --debug adds a traceback to an error; --install-completion teaches your shell. "
        "What a recipe lets one set: ssldet show RECIPE. The documentation: ssldet docs."
    ),
    version=lambda: version("ssldet"),
    help_format="plaintext",
)

VERBS: tuple[Callable[..., None] | App, ...] = (
    looking.demo,
    looking.doctor,
    looking.list_,
    looking.show,
    looking.plan,
    data.app,
    looking.preview,
    training.pretrain,
    training.finetune,
    using.evaluate,
    using.predict,
    using.serve,
    using.export,
    looking.report,
    looking.docs,
)
"""Every verb, in the order in which one needs them, which is also that of the help."""

for _place, _verb in enumerate(VERBS):
    if isinstance(_verb, App):
        _verb.sort_key = _place
        app.command(_verb)
    else:
        app.command(_verb, name=_verb.__name__.rstrip("_"), sort_key=_place)
app.register_install_completion_command(show=False)  # the epilogue names it


def _join_plugins() -> None:
    """Add the verbs of installed packages by name; none is imported, so that a broken one affects only its own verb."""
    for name in registry.names("ssldet.verbs"):
        if name not in app:  # our own verbs take precedence
            # The plug-in shows its own help.
            outer = App(
                name=name, help=f"Verbs of a plug-in; see: ssldet {name} --help", help_flags=[], version_flags=[]
            )
            outer.default(_calling(name))
            app.command(outer)


def _calling(name: str) -> Callable[..., None]:
    def call(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
        plugin = registry.find("ssldet.verbs", name)
        if not isinstance(plugin, App):
            raise ConfigError(f"verb {name!r} is {type(plugin).__name__!r} and no cyclopts App; tell who made it")
        plugin(words, exit_on_error=False, print_error=False, result_action="return_value")

    return call


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that the README lists.

    Args:
        arguments: Arguments after the program's name; `None` takes those of this process.
    """
    open_streams()
    slurm.adopt()
    # PyTorch's own word on a lost connection is a page long, and `peers` says the same in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if code := delivered(_call([word for word in words if word != "--debug"], debug=debug)):
        sys.exit(code)


def _call(words: Sequence[str], *, debug: bool) -> int:
    """Run a verb and return the exit code."""
    try:
        _join_plugins()
        with logging_to_stderr():
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as end:
        return int(end.code or 0)
    except (CycloptsError, SsldetError, OSError) as error:
        if debug:
            raise
        meant = [word if word in app else nearest(word, app) for word in words[:1]]
        return report_error(error, [*filter(None, meant)])
    return 0
