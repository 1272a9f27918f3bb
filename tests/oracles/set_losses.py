"""name, case -> predictions and targets that recorder and tests rebuild alike, and losses and matches to compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ssldet.class_scores import ClassScores
from ssldet.losses.criterion import Criterion
from ssldet.matching import PaddedTargets
from ssldet.types import Losses, Predictions, Targets
from tests.oracles.named import uniform

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def recorded(file: str) -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / file).read_text()))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a case: decoder layers, images, queries, channels of an embedding, targets of each image."""

    layers: int
    images: int
    queries: int
    channels: int
    targets: Sequence[int]

    def predictions(self, name: str, rows: int, scores: ClassScores) -> Predictions:
        shape = (self.layers, self.images, self.queries)
        places = uniform(f"{name} boxes", *shape, 4)
        return Predictions(
            logits=uniform(f"{name} logits", *shape, rows) * 3,
            boxes=torch.cat([0.5 + 0.3 * places[..., :2], 0.3 + 0.25 * places[..., 2:]], -1),
            states=uniform(f"{name} states", *shape, self.channels) * 2,
            scores=scores,
        )

    def wanted(self, name: str, label: int) -> list[Targets]:
        found = []
        for image, count in enumerate(self.targets):
            draw = uniform(f"{name} target {image}", count, 4)
            found.append(
                Targets(
                    boxes=torch.cat([0.5 + 0.25 * draw[:, :2], 0.3 + 0.2 * draw[:, 2:]], -1),
                    labels=torch.full((count,), label),
                    embeddings=uniform(f"{name} embedding {image}", count, self.channels) * 2,
                )
            )
        return found


def require_losses(losses: Losses, theirs: dict[str, Any]) -> None:
    """Compare the terms that were recorded; one number stands for the last layer."""
    for name, values in theirs.items():
        if name in losses.terms:
            ours = losses.terms[name] if isinstance(values, list) else losses.terms[name][-1]
            torch.testing.assert_close(ours, torch.tensor(values), **TOLERANCE, msg=lambda said, name=name: name + said)


def require_matches(criterion: Criterion, predictions: Predictions, targets: list[Targets], theirs: Any) -> None:
    """Compare who answers whom in each layer and image, and the sum of all costs there."""
    matches = criterion.matcher(predictions, targets)
    first = [sum(len(entry) for entry in targets[:image]) for image in range(len(targets))]
    padded = PaddedTargets(
        boxes=pad_sequence([entry.boxes for entry in targets], batch_first=True),
        labels=pad_sequence([entry.labels for entry in targets], batch_first=True),
    )
    costs = torch.stack([term.weight * term(predictions, padded) for term in criterion.matcher.costs]).sum(0)
    for layer, images in enumerate(theirs["matches"]):
        for image, (queries, answered) in enumerate(images):
            here = (matches.layer == layer) & (matches.image == image)
            ours = sorted(
                zip(matches.query[here].tolist(), (matches.target[here] - first[image]).tolist(), strict=True)
            )
            assert ours == sorted(zip(queries, answered, strict=True)), (layer, image)
            total = costs[layer, image, :, : len(targets[image])].double().sum()
            torch.testing.assert_close(float(total), theirs["cost"][layer][image], rtol=1e-5, atol=1e-5)
