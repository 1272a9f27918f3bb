"""Run -> the devices that it computes on and the processes that share its work; the only module that knows Fabric."""

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ssldet import ranks
from ssldet.data.loader import require_equal_shares
from ssldet.engine.run import Precision, Run
from ssldet.errors import SetupError
from ssldet.escapes import counted

log = logging.getLogger(__name__)


@runtime_checkable
class Devices(Protocol):
    """What the loop needs of devices: `OneDevice`, or Lightning's Fabric, which takes longer to import than torch."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def launch(self) -> Any:
        """Start the other processes of the run, or find them."""
        ...

    def setup_module(self, module: nn.Module) -> Any:
        """Place a module, and have gradients averaged over the ranks."""
        ...

    def backward(self, tensor: Tensor) -> None:
        """Compute gradients."""
        ...

    def no_backward_sync(self, module: Any, enabled: bool = True) -> AbstractContextManager[Any]:
        """Let gradients add up on each rank for now."""
        ...


class OneDevice:
    """One process with one device, without other ranks."""

    def __init__(self, kind: str) -> None:
        """Take the first device of a kind.

        Args:
            kind: `cpu`, `cuda` or `mps`.
        """
        self.device = torch.device(kind) if kind == "cpu" else torch.device(kind, 0)
        if kind == "cuda":
            torch.cuda.set_device(self.device)

    def launch(self) -> None:
        """Start nothing."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Place a module.

        Args:
            module: What learns.
        """
        return module.to(self.device)

    def backward(self, tensor: Tensor) -> None:
        """Compute gradients.

        Args:
            tensor: The loss.
        """
        tensor.backward()  # type: ignore[no-untyped-call]  # torch says no types

    def no_backward_sync(self, module: Any, enabled: bool = True) -> AbstractContextManager[Any]:
        """Do nothing: there are no other ranks.

        Args:
            module: What learns.
            enabled: Whether gradients would add up on each rank for now.
        """
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run computes.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        devices: Devices on each machine.
        machines: Number of machines.
        present: Devices of this kind on this machine.
    """

    kind: str
    devices: int
    machines: int
    present: int

    @property
    def world(self) -> int:
        """Number of devices, which is that of processes."""
        return self.devices * self.machines

    def __str__(self) -> str:
        """Return number and kind, such as `CPU` or `16 GPUs on 2 machines`."""
        name = {"cuda": "GPU", "mps": "Apple GPU"}.get(self.kind, "CPU")
        if self.kind == "cpu" and self.world > 1:
            return f"{self.world} processes on the CPU"
        count = name if self.world == 1 else f"{self.world} {name}s"
        return f"{count} on {self.machines} machines" if self.machines > 1 else count


def placement_of(run: Run) -> Placement:
    """Choose devices.

    Args:
        run: The configuration. Where it leaves their number open, all of this machine are taken that can share a batch
            equally; a notebook, which can't start further processes, takes one.

    Raises:
        SetupError: A device that was asked for is not there.
        ConfigError: A batch can't be split equally among them.
    """
    kind = _kind(run)
    present = torch.cuda.device_count() if kind == "cuda" else 1
    launched = ranks.launched()
    devices, machines = launched or (run.devices or present, 1)
    if kind != "cpu" and devices > present:
        raise SetupError(f"devices: {devices} asked for, {present} present; use --set devices={present}")
    shares = run.optim.accumulate * run.data.indivisible
    if not run.devices and launched is None:
        devices = (
            1
            if _interactive()
            else next(n for n in range(present, 0, -1) if n == 1 or not run.data.batch_size % (n * shares))
        )
    require_equal_shares(run.data.batch_size, devices * machines, run.optim.accumulate, run.data.indivisible)
    return Placement(kind=kind, devices=devices, machines=machines, present=present)


def settled(run: Run) -> Run:
    """Return the run with the precision that it will compute in, which its record states.

    Args:
        run: The configuration; `auto` becomes `bf16` on GPUs that compute in it, and `32` elsewhere.
    """
    if run.precision != "auto":
        return run
    has_bf16 = _kind(run) == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    precision: Precision = "bf16" if has_bf16 else "32"
    return replace(run, precision=precision)


def account(run: Run, placement: Placement) -> str:
    """Return the line that says where a run computes, how much of a step lies on each device, and how exactly."""
    each = run.data.batch_size // (placement.world * run.optim.accumulate)
    parts = f" in each of {run.optim.accumulate} parts" if run.optim.accumulate > 1 else ""
    share = f"{counted(each, 'image')} on {'each' if placement.world > 1 else 'it'}{parts}"
    text = f"{placement}: {share}, precision {run.precision}{tf32(placement.kind)}"
    if placement.kind == "cuda" and placement.machines == 1 and placement.devices < placement.present:
        text += f"; {placement.present - placement.devices} more here do nothing"
        if not run.devices:
            text += f", since {run.data.batch_size} images can't be shared equally by all (--batch-size)"
    return text


def tf32(kind: str) -> str:
    """Return which 32-bit operations of a GPU are rounded to TF32, as PyTorch is set, to follow the precision."""
    if kind != "cuda":
        return ""
    operations = {"matrices": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
    rounded = [name for name, allowed in operations.items() if allowed]
    return f" (32-bit {' and '.join(rounded)} in TF32)" if rounded else " (no TF32)"


def be_deterministic() -> None:
    """Use deterministic algorithms on an accelerator too."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def devices_for(placement: Placement, model: nn.Module) -> Devices:
    """Return what places the model and averages gradients; no process is started yet.

    Args:
        placement: Where to compute.
        model: What learns.
    """
    if placement.world == 1:
        return OneDevice(placement.kind)
    # Here, because it imports several libraries that nothing else needs.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    accelerator = {"cuda": "gpu"}.get(placement.kind, placement.kind)
    counts: dict[str, Any] = {"devices": placement.devices, "num_nodes": placement.machines}
    # Running statistics of batch norm are each rank's own; all others of our buffers are the same on all ranks.
    drifting = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    environment = TorchElasticEnvironment() if ranks.launched() is not None else None
    return Fabric(
        accelerator=accelerator, **counts, plugins=environment, strategy=_replicas(broadcast_buffers=drifting)
    )


def all_reached(devices: Devices, model: nn.Module) -> Any:
    """Wrap a model anew after a step in which a loss reached every parameter, so that no step looks for others.

    Looking for them goes through the graph of every step, and has the ranks exchange what they found.

    Args:
        devices: What wrapped it before; with one process nothing changes.
        model: The model itself.
    """
    strategy = getattr(devices, "strategy", None)
    if strategy is not None and hasattr(strategy, "search"):
        strategy.search = False
    return devices.setup_module(model)


def _replicas(*, broadcast_buffers: bool) -> Any:
    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    # Newer versions of PyTorch warn of the older name.
    names = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    of_buffers: dict[str, Any] = {name: broadcast_buffers}

    class Replicas(DDPStrategy):
        """DDP that looks for parameters which no loss reaches as long as it is told to."""

        search = True

        def setup_module(self, module: nn.Module) -> DistributedDataParallel:
            """Wrap a module."""
            on_gpu = self.root_device.type == "cuda"
            wrap = partial(
                DistributedDataParallel,
                module,
                device_ids=[self.root_device.index] if on_gpu else None,
                find_unused_parameters=self.search,
                gradient_as_bucket_view=True,
                **of_buffers,
            )
            if not on_gpu:
                return wrap()
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]  # PyTorch's gap
                return wrap()

    return Replicas(timeout=ranks.TIMEOUT)


def _kind(run: Run) -> str:
    """Return the kind of device that a run computes on.

    Raises:
        SetupError: It is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if run.device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[run.device]:
        raise SetupError(f"device: {run.device} was asked for, but torch sees no such device; use --set device=auto")
    return run.device


def _interactive() -> bool:
    """Tell whether this is a notebook or a prompt, where no further process can be started as this one was."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
