"""More objects than queries are said before the first step."""

import pytest
import torch

from ssldet.detectors.detr import DETRConfig
from ssldet.source import Source
from ssldet.types import Sample, Targets
from ssldet.verbs.quick_choice import warn_of_few_queries


class Crowded(Source):
    """Images with 3, 30, no known and 11 objects."""

    counts = (3, 30, None, 11)
    classes = ("cat", "dog")
    fingerprint = "crowded"
    skipped = ()

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError("no image is read to count its objects")

    def __len__(self) -> int:
        return len(self.counts)

    def targets_of(self, index: int) -> Targets | None:
        count = self.counts[index]
        return None if count is None else Targets(boxes=torch.rand(count, 4), labels=torch.zeros(count).long())


@pytest.mark.parametrize(("queries", "says"), [(10, "2 of 4 images"), (29, "1 of 4 images"), (30, "")])
def test_the_largest_count_the_queries_and_the_setting_are_named(
    queries: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_few_queries(DETRConfig(num_classes=2, num_queries=queries), Crowded())
    assert bool(caplog.text) == bool(says)
    if says:
        assert says in caplog.text
        assert f"up to 30 objects, {queries} queries" in caplog.text
        assert "--set detector.num_queries=30" in caplog.text
