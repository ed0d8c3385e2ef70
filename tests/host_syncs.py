"""Finds, on a CPU, what would make the host wait for a GPU: values and shapes that are read from a model's tensors.

Copies by `Tensor.to`, either way, are seen on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from l2g_ray import sequence
from l2g_ray.data.batches import Batch
from l2g_ray.stages import loop

aten = torch.ops.aten
# Their result is a number of the host, or has a shape that depends on values.
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.repeat_interleave,
}
READS_BY_NAME = {"numpy", "tolist", "cpu", "item", "__array__"}


class HostSync(AssertionError):
    """A step reads what is on the device."""


class OnDevice:
    """Which tensors would be on the GPU: those that were marked, and all that is computed from them."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}  # held, so that no address is used twice

    def mark(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(values)[0] if isinstance(x, torch.Tensor)]


class _Dispatch(TorchDispatchMode):
    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _tensors((args, kwargs or {}))
        if any(x in self.device for x in inputs):
            indices = _tensors(args[1]) if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else []
            if func.overloadpacket in READS or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                raise HostSync(f"{func} reads a tensor of the device")
            result = func(*args, **(kwargs or {}))
            self.device.mark(_tensors(result))
            return result
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """What never reaches the dispatcher, since on a CPU there is nothing to copy."""

    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS_BY_NAME and isinstance(args[0], torch.Tensor) and args[0] in self.device:
            raise HostSync(f"Tensor.{name} reads a tensor of the device")
        return func(*args, **(kwargs or {}))


def _fields(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


@contextmanager
def no_host_syncs(monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> Iterator[list[int]]:
    """Within, steps of training (not what comes before, between and after epochs) raise where they wait for the device.

    On a CPU a model, what batches move and the masks made of their lengths count as being on the device. Gives the steps' counts.
    """
    steps: list[int] = []
    run_steps, to, make_mask = loop._run_steps, Batch.to, sequence.make_mask

    def watched(model: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, int]:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = run_steps(model, *args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            on_device = OnDevice()
            on_device.mark([*model.parameters(), *model.buffers()])
            with ExitStack() as stack:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(Batch, "to", lambda batch, where: move(batch, where, on_device))
                patch.setattr(sequence, "make_mask", lambda lengths, width: mask(lengths, width, on_device))
                stack.enter_context(_Dispatch(on_device))
                stack.enter_context(_Functions(on_device))
                found = run_steps(model, *args, **kwargs)
        steps.append(found[1])
        return found

    def mask(lengths_bp: torch.Tensor, width: int, on_device: OnDevice) -> torch.Tensor:
        found = make_mask(lengths_bp, width)
        on_device.mark([found])
        return found

    def move(batch: Batch, where: str, on_device: OnDevice) -> Batch:
        # A device without memory shows which fields are copied.
        moved = [name for name, value in _fields(to(batch, "meta")).items() if value.device.type == "meta"]
        copies = {name: _fields(batch)[name].clone() for name in moved}
        on_device.mark(copies.values())
        return replace(to(batch, "cpu"), **copies)

    monkeypatch.setattr(loop, "_run_steps", watched)
    yield steps
