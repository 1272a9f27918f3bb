"""a COCO file -> the same set as a dataset of Hugging Face, as its library builds one; skips where it is missing."""

import json
from pathlib import Path
from typing import Any

import pytest


def library() -> Any:
    """The library, quiet."""
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed: pip install 'ssldet[hf]'")
    datasets.disable_progress_bars()
    return datasets


def as_dataset(annotations: Path) -> Any:
    hf, document = library(), json.loads(annotations.read_text())
    names = [category["name"] for category in document["categories"]]
    label = {category["id"]: number for number, category in enumerate(document["categories"])}
    box = {"bbox": hf.List(hf.Value("float64"), length=4), "category": hf.ClassLabel(names=names)}
    features = hf.Features({"image_id": hf.Value("int64"), "image": hf.Image(), "objects": hf.List(box)})
    rows = [
        {
            "image_id": image["id"],
            "image": {"bytes": (annotations.parent / "images" / image["file_name"]).read_bytes(), "path": None},
            "objects": [
                {"bbox": list(map(float, row["bbox"])), "category": label[row["category_id"]]}
                for row in document["annotations"]
                if row["image_id"] == image["id"]
            ],
        }
        for image in document["images"]
    ]
    return hf.Dataset.from_list(rows, features=features)
