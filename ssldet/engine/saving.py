"""training state -> a copy on the host, and a thread that writes it while the next steps change what was copied."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """A copy of a training state in the memory of the host, as it was when it was taken.

    Tensors that share memory share it in the copy too, so that a file made of the copy is the one made of the state. On
    an accelerator copying only begins here: steps that follow come behind it in the device's queue.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        """Copy the tensors.

        Args:
            state: Tensors and JSON types.
        """
        self._storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}
        self._state: dict[str, Any] = self._copy(state)
        devices = {device for device, _ in self._storages if device.type == "cuda"}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]

    def state(self) -> dict[str, Any]:
        """Return the copy, once it is complete."""
        for event in self._copied:
            event.synchronize()
        return self._state

    def _copy(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._copy(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self._copy(item) for item in value)
        return self._copy_tensor(value) if isinstance(value, Tensor) else value

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place = tensor.device, storage.data_ptr()
        if place not in self._storages:
            content = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._storages[place] = content.to("cpu", non_blocking=True, copy=True).untyped_storage()
        copied = torch.empty(0, dtype=tensor.dtype)
        return copied.set_(self._storages[place], tensor.storage_offset(), tensor.shape, tensor.stride())


class BackgroundWork:
    """One piece of work at a time, done by a thread while this one goes on."""

    def __init__(self) -> None:
        """Begin with nothing to do."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether work has ended and `wait` was not called since."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, work: Callable[[], object], name: str) -> None:
        """Begin with some work; what was begun before must have been waited for.

        Args:
            work: What to do.
            name: Names the thread.
        """
        # Not a daemon: a program that ends lets it come to its end.
        self._thread = threading.Thread(target=self._do, args=(work,), name=name)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end of the work, if there is any, and raise what it raised."""
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # raised again where it is waited for
            self._error = error
