"""The mathematics of MoCo v2 as it is put together here."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pretext.moco_v2 import MoCoV2, MomentumContrast
from pretext.recipes.moco_v2 import tiny
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.task import learning_sections
from ssldet.testing.tasks import _photo
from ssldet.types import Batch

TASK = MoCoV2(crop_size=32, hidden_width=20, width=12, queue_length=7, momentum=0.75, key_groups=2, eval_side=32)


def objective_of(task: MoCoV2) -> MomentumContrast:
    torch.manual_seed(0)
    detector = tiny().detector.build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: MoCoV2) -> Batch:
    views = task.views()
    return collate([views(_photo(number % 3), generator(number)) for number in range(5)])


def test_the_loss_finds_the_other_crop_among_the_queue() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    queue = objective.loss.memory_bank.bank.clone()
    queries = F.normalize(objective.head(objective.describe(batch.problem.pixels[0][:, 0])), dim=1)
    torch.manual_seed(1)
    keys = F.normalize(objective._keys(batch.problem.pixels[0][:, 1]), dim=1)
    right = (queries * keys).sum(1, keepdim=True)
    every = torch.cat([right, queries @ queue.T], dim=1) / TASK.temperature
    expected = (every.logsumexp(1) - right[:, 0] / TASK.temperature).mean()
    torch.manual_seed(1)
    losses = objective(batch)
    torch.testing.assert_close(losses.total, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.metrics["positive_similarity"], right.mean().detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.metrics["negative_similarity"], (queries @ queue.T).mean().detach())
    torch.testing.assert_close(objective.loss.memory_bank.bank[:5], keys)
    assert torch.equal(objective.loss.memory_bank.bank[5:], queue[5:])


def test_the_key_encoder_follows_at_a_step_and_learns_nothing_itself() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    pairs = [
        *zip(objective.detector.backbone.parameters(), objective.key_backbone.parameters(), strict=True),
        *zip(objective.head.parameters(), objective.key_head.parameters(), strict=True),
    ]
    assert all(torch.equal(ours, follows) for ours, follows in pairs)
    optimizer = torch.optim.SGD([ours for ours, _ in pairs], lr=0.5)
    objective(batch).total.backward()
    optimizer.step()
    before = [follows.clone() for _, follows in pairs]
    objective.begin(1, 9)
    for (ours, follows), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(follows, 0.75 * old + 0.25 * ours)
        assert follows.grad is None
    assert any(not torch.equal(follows, old) for (_, follows), old in zip(pairs, before, strict=True))


def test_keys_come_back_in_order_whatever_their_group() -> None:
    objective, batch = objective_of(TASK).eval(), batch_of(TASK)
    pixels = batch.problem.pixels[0][:, 1]
    with torch.no_grad():
        plain = objective.key_head(objective.describe(pixels))
    for groups in (1, 2, 8):
        objective.task = replace(TASK, key_groups=groups)
        torch.testing.assert_close(objective._keys(pixels), plain, rtol=1e-4, atol=1e-5)


def test_keys_of_another_group_are_normalised_by_other_statistics() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    pixels = batch.problem.pixels[0][:, 1]
    keys = []
    for groups in (1, 2):
        objective.task = replace(TASK, key_groups=groups)
        torch.manual_seed(3)
        keys.append(objective._keys(pixels))
    assert not torch.allclose(keys[0], keys[1], atol=1e-3)
