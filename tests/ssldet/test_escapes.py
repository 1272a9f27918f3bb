"""Names from files can't clear a screen or forge a line, wherever they are printed."""

import logging

import pytest

from ssldet import errors
from ssldet.cli import main
from ssldet.engine.log import logged_to
from ssldet.errors import ConfigError, DataError, UnreadableError
from ssldet.escapes import printable, printable_lines, shown

FORGED = "a\x1b[2J\rb\u2028c\u202ed\udcffe"
SAFE = r"a\x1b[2J\rb\u2028c\u202ed\udcffe"


def test_a_name_is_escaped_and_a_plain_one_is_left() -> None:
    assert printable(FORGED + "\n") == SAFE + r"\n"
    assert printable("Straße 图片 'x' \\n") == "Straße 图片 'x' \\n"
    assert printable_lines(f"{FORGED}\nb") == f"{SAFE}\nb"
    assert shown(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == r"caf\xe9.jpg"


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_escapes_what_it_says(kind: type[Exception]) -> None:
    if issubclass(kind, UnreadableError):
        assert str(kind(FORGED, "missing")) == f"{SAFE}: missing"
    elif issubclass(kind, errors.SsldetError):
        assert str(kind(FORGED)) == SAFE


def test_the_problems_of_an_error_stay_lines() -> None:
    assert str(ConfigError(["a", f"b {FORGED}"])) == f"a\nb {SAFE}"


def test_log_lines_are_escaped(tmp_path) -> None:
    with logged_to(tmp_path / "train.log"):
        logging.getLogger("ssldet.odd").warning("of %s", FORGED)
    assert (tmp_path / "train.log").read_text().endswith(f"WARNING of {SAFE}\n")


def test_the_command_line_escapes_what_it_prints(monkeypatch, capsys, caplog) -> None:
    from ssldet import catalogue

    def fail(*_: object) -> None:
        logging.getLogger("ssldet.odd").warning("of %s", FORGED)
        raise DataError(f"no {FORGED}")

    monkeypatch.setattr(catalogue, "list_names", lambda *_: {FORGED: [FORGED]})
    main(["list", "tasks"])
    assert capsys.readouterr().out == f"{SAFE}  {SAFE}\n"
    monkeypatch.setattr(catalogue, "list_names", fail)
    with pytest.raises(SystemExit) as caught:
        main(["list", "tasks"])
    assert caught.value.code == DataError.exit_code
    assert capsys.readouterr().err == f"of {SAFE}\nerror: no {SAFE}\n"
