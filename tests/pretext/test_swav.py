"""The mathematics of SwAV as it is put together here."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pretext.recipes.swav import tiny
from pretext.swav import SwappedPrediction, SwAV
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.task import learning_sections
from ssldet.testing.tasks import _photo
from ssldet.types import Batch

TASK = SwAV(
    large_size=32, small_size=16, large_crops=2, small_crops=3, hidden_width=20, width=12, prototypes=10, eval_side=32
)


def objective_of(task: SwAV) -> SwappedPrediction:
    torch.manual_seed(0)
    detector = tiny().detector.build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: SwAV) -> Batch:
    views = task.views()
    return collate([views(_photo(number % 3), generator(number)) for number in range(5)])


def assigned(similarity: torch.Tensor, task: SwAV) -> torch.Tensor:
    """Sinkhorn's iterations as the paper writes them: rows and columns made equal in turn (section 3.1)."""
    images, prototypes = similarity.shape
    shares = torch.exp(similarity / task.sinkhorn_epsilon)
    for _ in range(task.sinkhorn_iterations):
        shares = shares / shares.sum(0, keepdim=True) / prototypes
        shares = shares / shares.sum(1, keepdim=True) / images
    return shares * images


def expected(objective: SwappedPrediction, batch: Batch, queued: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The loss term by term: every large crop's assignment, predicted by each other crop."""
    task = objective.task
    # Norms see all crops of a size at once, and the head's all crops, as in the authors' code.
    features = [objective.describe(crops.transpose(0, 1).flatten(0, 1)) for crops in batch.problem.pixels]
    crops = F.normalize(objective.head(torch.cat(features)), dim=1).split(len(batch))
    weight = objective.prototypes.heads[0].weight
    total = torch.zeros(())
    for place in range(2):
        others = [] if queued is None else [queued[place]]
        codes = assigned(torch.cat([crops[place], *others]) @ weight.T, task)[: len(batch)].detach()
        for other in (n for n in range(5) if n != place):
            guess = (crops[other] @ weight.T / task.temperature).log_softmax(1)
            total = total - (codes * guess).sum(1).mean() / 4 / 2
    return total


def test_the_loss_is_the_papers() -> None:
    objective, batch = objective_of(replace(TASK, frozen_prototype_steps=0)), batch_of(TASK)
    torch.testing.assert_close(objective(batch).total, expected(objective, batch), rtol=1e-4, atol=1e-5)


def test_the_queue_takes_part_from_its_step_on_and_forgets_the_oldest() -> None:
    task = replace(TASK, frozen_prototype_steps=0, queue_length=7, queue_start=2)
    objective, batch = objective_of(task), batch_of(task)
    queued = [queue.bank.clone() for queue in objective.queues]
    before = expected(objective, batch)
    objective.begin(1, 9)
    torch.testing.assert_close(objective(batch).total, before, rtol=1e-4, atol=1e-5)
    for queue, old in zip(objective.queues, queued, strict=True):
        assert torch.equal(queue.bank[5:], old[5:])
        assert not torch.equal(queue.bank[:5], old[:5])
    queued = [queue.bank.clone() for queue in objective.queues]
    objective.begin(2, 9)
    torch.testing.assert_close(objective(batch).total, expected(objective, batch, queued), rtol=1e-4, atol=1e-5)
    objective.eval()
    queued = [queue.bank.clone() for queue in objective.queues]
    objective(batch)
    assert all(torch.equal(queue.bank, old) for queue, old in zip(objective.queues, queued, strict=True))


def test_prototypes_rest_at_first_and_are_of_length_one_at_every_step() -> None:
    objective, batch = objective_of(replace(TASK, frozen_prototype_steps=3)), batch_of(TASK)
    weight = objective.prototypes.heads[0].weight
    assert objective.prototypes.heads[0].bias is None
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    for step, learns in ((0, False), (2, False), (3, True)):
        objective.begin(step, 9)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(10))
        optimizer.zero_grad()
        objective(batch).total.backward()
        assert (weight.grad is not None) is learns
        optimizer.step()
    assert not torch.allclose(weight.norm(dim=1), torch.ones(10))


def test_entropies_tell_a_crowd_from_a_balance() -> None:
    objective = objective_of(TASK)
    crowd = torch.zeros(6, 10)
    crowd[:, 3] = 5.0
    balance = 5.0 * torch.eye(10)
    one, other = objective._usage(crowd), objective._usage(balance)
    assert float(one["prototype_entropy"]) < 0.01
    assert float(other["prototype_entropy"]) > 0.999
    assert float(other["prediction_entropy"]) < 0.01
    assert float(objective._usage(torch.zeros(6, 10))["prediction_entropy"]) > 0.999
