"""The probe of whole-image features: votes of neighbours."""

from pathlib import PurePath

import pytest
import torch

from pretext.nearest_neighbours import Category, NearestNeighbours
from ssldet.data.collate import collate
from ssldet.errors import DataError, DivergedError
from ssldet.neighbours import vote
from ssldet.types import Batch, Embedding, Sample, Targets


def found(vector: torch.Tensor) -> Embedding:
    return Embedding(vector=vector)


def batch_of(*keys: str) -> Batch:
    targets = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    samples = [
        Sample(
            image=image,
            targets=targets,
            key=key,
            original_size=(4, 5),
            problem=Category(folder=PurePath(key).parent.name),
        )
        for key in keys
    ]
    return collate(samples)


def test_no_image_votes_on_itself_and_near_ones_count_more() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.05, 1.0]])
    labels = torch.tensor([0, 1, 2, 2, 2])
    # The first two are alone in their classes, so each gets the other's label.
    assert vote(vectors, labels, 1).tolist() == [1, 0, 2, 2, 2]
    # Of all others three say 2, but far away, and one says 1.
    assert vote(vectors, labels, 4).tolist() == [1, 0, 2, 2, 2]
    assert vote(vectors, labels, 99).tolist() == vote(vectors, labels, 4).tolist()


def test_votes_don_t_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors, labels = torch.randn(11, 3), torch.arange(11) % 3
    whole = vote(vectors, labels, 5)
    monkeypatch.setattr("ssldet.neighbours.CHUNK", 4)
    assert torch.equal(vote(vectors, labels, 5), whole)


def test_folders_are_the_labels_and_the_largest_one_is_the_chance() -> None:
    probe = NearestNeighbours(neighbours=2)
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    probe.update([found(near), found(near)], batch_of("cats/1.jpg", "cats/2.jpg"))
    probe.update([found(near), found(far), found(far)], batch_of("x/cats/3.jpg", "dogs/4.jpg", "dogs/5.jpg"))
    results = probe.results()
    assert results["folders"] == 2
    assert results["knn_chance"] == pytest.approx(0.6)
    assert results["knn_top1"] == pytest.approx(1.0)


@pytest.mark.parametrize("keys", [("cats/1.jpg", "cats/2.jpg"), ("1.jpg", "2.jpg")])
def test_one_folder_says_that_there_is_no_probe(keys: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    probe = NearestNeighbours(neighbours=2)
    probe.update([found(torch.ones(3))] * 2, batch_of(*keys))
    results = probe.results()
    assert (results["knn_top1"], results["knn_chance"]) == (None, None)
    assert "one folder per class" in caplog.text


def test_what_is_not_finite_or_not_there_is_not_measured() -> None:
    probe = NearestNeighbours(neighbours=2)
    with pytest.raises(DataError, match="no image"):
        probe.results()
    with pytest.raises(DivergedError):
        probe.update([found(torch.tensor([1.0, torch.nan]))], batch_of("a/1.jpg"))
