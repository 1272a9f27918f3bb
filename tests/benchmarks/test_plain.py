"""The plain way to take a step of pretraining: the same mathematics as the fast one."""

import torch

from benchmarks.timing.plain import PlainStep, PlainUPDETR
from ssldet.matching import Matcher
from ssldet.types import Predictions, Targets

SMALL = {"width": 32, "heads": 2, "feedforward": 32, "layers": 1, "queries": 6}


def test_a_step_learns() -> None:
    torch.manual_seed(0)
    step = PlainStep(PlainUPDETR(**SMALL), torch.device("cpu"))
    boxes = torch.tensor([[[0.3, 0.4, 0.2, 0.2], [0.7, 0.6, 0.4, 0.3]]]).expand(2, 2, 4)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    given = (torch.randn(2, 3, 64, 96), padding, torch.randn(2, 2, 3, 32, 32), boxes)
    losses = [step(*given) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_queries_are_matched_as_by_our_matcher() -> None:
    torch.manual_seed(0)
    network = PlainUPDETR(**SMALL)
    logits, found = torch.randn(3, 6, 2), torch.rand(3, 6, 4) * 0.4 + 0.2
    boxes = torch.rand(3, 2, 4) * 0.4 + 0.2
    images, queries = network._match(logits, found, boxes)
    predictions = Predictions(logits=logits[None], boxes=found[None], states=torch.zeros(1, 3, 6, 2))
    targets = [Targets(boxes=one, labels=torch.zeros(2, dtype=torch.long)) for one in boxes]
    pairs = Matcher()(predictions, targets)
    ours = sorted(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.target.tolist(), strict=True))
    theirs = sorted(zip(images.tolist(), queries.tolist(), range(6), strict=True))
    assert ours == theirs
