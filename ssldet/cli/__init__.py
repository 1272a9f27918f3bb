"""command line -> the public function of each verb; parsing imports nothing heavy, so that it is quick."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from ssldet import registry
from ssldet.cli import data, looking, training, using
from ssldet.errors import ConfigError, SsldetError, StoppedError, refused
from ssldet.escapes import EscapingFormatter, printable_lines

app = App(
    name="ssldet",
    help="Pretrain whole detection transformers on unlabelled images, then fine-tune, evaluate and export them.",
    help_epilogue="Any verb takes --help; --debug adds a traceback to an error. Documentation of every option: docs/.",
    version=lambda: version("ssldet"),
    help_format="plaintext",
)

VERBS: tuple[Callable[..., None] | App, ...] = (
    looking.demo,
    looking.doctor,
    looking.list_,
    data.app,
    looking.preview,
    training.pretrain,
    training.finetune,
    using.evaluate,
    using.predict,
    using.export,
    looking.report,
)
"""Every verb, in the order in which one needs them, which is also that of the help."""

for _place, _verb in enumerate(VERBS):
    if isinstance(_verb, App):
        _verb.sort_key = _place
        app.command(_verb)
    else:
        app.command(_verb, name=_verb.__name__.rstrip("_"), sort_key=_place)


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
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _join_plugins()
        with _logging_to_stderr():
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, SsldetError) as error:
        if debug:
            raise
        sys.exit(_report_error(error, words[:1]))
    except OSError as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):  # Python would try to flush it once more on its way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_report_error(refused(error), words[:1]))


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Print log messages of our packages on standard error, one line per message."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(message)s"))
    # `Display` shows the progress of a run on the terminal; its log messages are for the file only.
    handler.addFilter(lambda record: record.levelno > logging.INFO or record.name != "ssldet.engine.reporter")
    loggers = [logging.getLogger(package) for package in ("ssldet", "pretext", "downstream")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _report_error(error: CycloptsError | SsldetError, verb: Sequence[str]) -> int:
    """Print an error for the user and return its exit code."""
    if isinstance(error, CycloptsError):
        sys.stderr.write(f"error: {printable_lines(str(error))} (see: {' '.join(['ssldet', *verb, '--help'])})\n")
        return ConfigError.exit_code
    word = "stopped" if isinstance(error, StoppedError) else "error"
    sys.stderr.writelines(f"{word}: {line}\n" for line in str(error).splitlines())
    return error.exit_code
