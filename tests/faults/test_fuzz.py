"""Damaged files of every format: read, or refused by an error of ssldet's own; nothing else ever comes out."""

from pathlib import Path

from tests.faults.formats import formats
from tests.faults.fuzzing import Format, Verdict, fuzz, try_case

SEED = 0


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    kinds = formats(tmp_path)
    for kind in kinds:
        kind.read()
    verdict = fuzz(kinds, SEED, tmp_path / "kept")
    assert verdict.cases >= 5000
    assert not verdict.foreign, str(verdict)
    assert verdict.refused.keys() | verdict.read.keys() == {kind.name for kind in kinds}
    assert verdict.refused.total() > verdict.cases / 4, "the damage does harm"


def test_a_foreign_exception_counts_and_its_input_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1]")

    def read() -> None:
        raise KeyError("area")

    verdict, form = Verdict(), Format(name="x", file=file, damage=lambda *_: b"[2]", read=read, cases=1)
    try_case(form, 7, 3, verdict, tmp_path / "kept")
    assert "x seed 7 case 3: KeyError" in str(verdict)
    assert (tmp_path / "kept" / "x-7-3.json").read_text() == "[2]"
    assert file.read_text() == "[1]"
