"""BackboneConfig -> a network that never learns, and is no part of what is trained: it proposes regions, or teaches."""

from functools import cache
from hashlib import blake2b

import torch

from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone
from ssldet.weights.backbone import load_backbone


@cache
def resting_network(config: BackboneConfig, device: torch.device | None = None) -> Backbone:
    """Return the network of a configuration with its weights, built once per process and device.

    Without weights it is the same fresh network everywhere.

    Args:
        config: The network; where it names weights, these are loaded.
        device: Where it computes; `None` means the CPU.

    Raises:
        ConfigError: There is no such network.
        CheckpointError: Its weights can't be read or don't fit.
        SetupError: Its weights are not here and can't be fetched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_backbone(config)
    if config.weights is not None:
        load_backbone(network, config.weights, architecture=config.name, coverage=config.coverage)
    return network.to(device or "cpu").eval().requires_grad_(False)


@cache
def fingerprint_of_weights(config: BackboneConfig) -> str:
    """Return a digest of the weights of `resting_network`, once per process.

    A file of the same name may hold others tomorrow.

    Args:
        config: The network.
    """
    digest = blake2b(digest_size=8)
    for name, value in resting_network(config).state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
