"""Names of result files: one per image, and back to its key."""

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from ssldet.types import Segmentation
from ssldet.verbs.file_names import FileNames
from ssldet.verbs.results import PanopticResults

KEYS = [
    "图片.jpg",
    "照片.jpg",
    "фото.jpg",
    "a/b.jpg",
    "a_b.jpg",
    "a b.jpg",
    "..",
    ".hidden",
    "a%2Fb.jpg",
    "a\\b",
    "é",
    "~2",
]


def test_every_key_has_a_name_of_its_own_that_leads_back(tmp_path: Path) -> None:
    name_of = FileNames()
    names = [name_of(key) for key in KEYS]
    for name in names:
        (tmp_path / f"{name}.png").touch()
    assert len(list(tmp_path.iterdir())) == len(KEYS)
    assert [unquote(name) for name in names] == KEYS
    assert names[0] == "图片.jpg"


@pytest.mark.parametrize(
    "keys", [["x" * 300 + "1", "x" * 300 + "2"], ["A.jpg", "a.jpg"], ["é", "e\u0301"], ["k", "k"], ["", ""]]
)
def test_names_that_a_file_system_would_mix_up_get_numbers(keys: list[str], tmp_path: Path) -> None:
    name_of = FileNames()
    names = [name_of(key) for key in keys]
    assert len({name.casefold() for name in names}) == 2
    assert all(len(os.fsencode(f"{name}.png")) < 255 for name in names)


def test_panoptic_entries_never_share_a_picture(tmp_path: Path) -> None:
    results = PanopticResults(tmp_path / "panoptic.json")
    for key in KEYS:
        segments = torch.ones(3, 5, dtype=torch.int64)
        results.add(Segmentation(segments=segments, labels=torch.tensor([0])), key, key)
    results.close()
    assert len(list((tmp_path / "panoptic").iterdir())) == len(KEYS)
