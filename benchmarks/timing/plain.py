"""UP-DETR's pretraining step in plain PyTorch, as the first implementations wrote it, to time the fast ways against.

Attention is `torch.nn.MultiheadAttention`; groups of queries are kept apart by a mask of all queries x all queries;
each decoder layer is matched by itself, over the cost of all predictions of the batch and all of its boxes; the costs
of the images are then assigned one by one. Nothing is fused, and the mathematics is the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ssldet.boxes import cxcywh_to_xyxy, elementwise_giou, pairwise_giou
from ssldet.nn.position import SinePosition

WEIGHTS = {"class": 1.0, "box": 5.0, "giou": 2.0, "feature": 1.0}
"""Part of the loss -> weight (UP-DETR, section 4.1)."""


class _Layer(nn.Module):
    """A layer of the encoder or, with memory, of the decoder; normalised after each branch."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, decodes: bool) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.across = nn.MultiheadAttention(width, heads, dropout, batch_first=True) if decodes else None
        self.feed = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if decodes else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        memory: tuple[Tensor, Tensor] | None = None,
        *,
        padding: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        asking = states + position
        ignored = padding if memory is None else None
        found = self.own(asking, asking, states, key_padding_mask=ignored, attn_mask=mask)[0]
        states = self.norms[0](states + self.dropout(found))
        if self.across is not None and memory is not None:
            values, places = memory
            found = self.across(states + position, values + places, values, key_padding_mask=padding)[0]
            states = self.norms[1](states + self.dropout(found))
        fed: Tensor = self.norms[-1](states + self.dropout(self.feed(states)))
        return fed


class PlainUPDETR(nn.Module):
    """DETR with ResNet-50 that finds patches, as UP-DETR trains it with a frozen backbone."""

    def __init__(
        self, *, width: int = 256, heads: int = 8, feedforward: int = 2048, layers: int = 6, queries: int = 100
    ) -> None:
        """Draw fresh weights.

        Args:
            width: Channels of the transformer.
            heads: Attention heads.
            feedforward: Hidden channels of each layer's perceptron.
            layers: Layers of the encoder and of the decoder.
            queries: Queries (N).
        """
        super().__init__()
        whole = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
        self.backbone = nn.Sequential(*list(whole.children())[:-2]).requires_grad_(False)
        self.project = nn.Conv2d(2048, width, 1)
        self.describe = nn.Linear(2048, width)
        self.position = SinePosition(width)
        self.queries = nn.Embedding(queries, width)
        parts = (width, heads, feedforward, 0.1)
        self.encoder = nn.ModuleList(_Layer(*parts, decodes=False) for _ in range(layers))
        self.decoder = nn.ModuleList(_Layer(*parts, decodes=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, 2)
        self.boxes = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        self.features = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2048))

    def forward(self, images: Tensor, padding: Tensor, patches: Tensor, boxes: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            images: Normalised pixels, (B, 3, H, W).
            padding: True where the canvas holds no image, (B, H, W).
            patches: Normalised pixels, (B, M, 3, h, w).
            boxes: Where the patches come from, as cxcywh of the image from 0 to 1, (B, M, 4).
        """
        maps = self.backbone(images)
        hidden = F.interpolate(padding[None].float(), size=maps.shape[-2:])[0].bool()
        places, ignored = self.position(hidden).flatten(1, 2), hidden.flatten(1)
        states = self.project(maps).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            states = layer(states, places, padding=ignored)
        wanted = self.backbone(patches.flatten(0, 1)).mean((-2, -1)).unflatten(0, patches.shape[:2])
        count, each = len(self.queries.weight), len(self.queries.weight) // patches.shape[1]
        group = torch.arange(count, device=images.device) // each
        order = torch.randperm(count, device=images.device)
        content = self.describe(wanted).repeat_interleave(each, 1)
        kept = torch.rand(len(images), count, 1, device=images.device) > 0.1
        query = content * kept + self.queries.weight[order]
        mask, answer, outputs = group[:, None] != group[None], torch.zeros_like(query), []
        for layer in self.decoder:
            answer = layer(answer, query, (states, places), padding=ignored, mask=mask)
            outputs.append(self.norm(answer))
        return torch.stack([self._loss(output, boxes, wanted) for output in outputs]).sum()

    def _loss(self, states: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of one decoder layer."""
        logits, found = self.classes(states), self.boxes(states).sigmoid()
        images, queries = self._match(logits, found, boxes)
        labels = torch.ones(logits.shape[:2], dtype=torch.long, device=logits.device)
        labels[images, queries] = 0
        share = torch.tensor([1.0, boxes.shape[1] / logits.shape[1]], device=logits.device)
        matched, count = found[images, queries], boxes.shape[0] * boxes.shape[1]
        overlap = elementwise_giou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(boxes.flatten(0, 1)))
        told = F.normalize(self.features(states)[images, queries], dim=-1)
        whole: Tensor = (
            WEIGHTS["class"] * F.cross_entropy(logits.transpose(1, 2), labels, share)
            + WEIGHTS["box"] * (matched - boxes.flatten(0, 1)).abs().sum() / count
            + WEIGHTS["giou"] * (1 - overlap).sum() / count
            + WEIGHTS["feature"] * F.mse_loss(told, F.normalize(wanted.flatten(0, 1), dim=-1), reduction="sum") / count
        )
        return whole

    @torch.no_grad()
    def _match(self, logits: Tensor, found: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image and the query of each box, image by image."""
        answers, flat = found.flatten(0, 1), boxes.flatten(0, 1)
        chance = logits.flatten(0, 1).softmax(-1)[:, :1]
        distance = torch.cdist(answers, flat, p=1)
        overlap = pairwise_giou(cxcywh_to_xyxy(answers), cxcywh_to_xyxy(flat))
        cost = (5 * distance - chance - 2 * overlap).view(*logits.shape[:2], -1).cpu()
        images, queries = [], []
        for number, part in enumerate(torch.split(cost, boxes.shape[1], -1)):
            rows, columns = linear_sum_assignment(part[number])
            by_box: Any = torch.as_tensor(rows)[torch.as_tensor(columns).argsort()]
            queries.append(by_box)
            images.append(torch.full_like(by_box, number))
        return torch.cat(images).to(found.device), torch.cat(queries).to(found.device)


class PlainStep:
    """A step of training as the first implementations took it."""

    def __init__(self, network: PlainUPDETR, device: torch.device, *, clip: float = 0.1) -> None:
        """Build the optimiser.

        Args:
            network: What is trained.
            device: Where to compute.
            clip: Largest norm of the gradient.
        """
        self.network, self.clip = network.to(device).train(), clip
        self.learning = [weights for weights in network.parameters() if weights.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4, weight_decay=1e-4)

    def __call__(self, images: Tensor, padding: Tensor, patches: Tensor, boxes: Tensor) -> float:
        """Take a step; the arguments are those of the network."""
        loss = self.network(images, padding, patches, boxes)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.learning, self.clip)
        self.optimizer.step()
        return float(loss.detach())
