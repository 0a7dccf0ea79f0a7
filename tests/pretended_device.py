"""A pretended accelerator: real numbers on a device of their own, with every wait of the host and every launch counted.

A tensor on `DEVICE` holds its values in an ordinary CPU tensor and computes with the CPU's kernels, so that results are
the CPU's bit for bit. But it lies on a device of its own: as on a GPU, an operation on tensors of two devices raises.
What the host would wait for on a GPU is recorded with the line of code that asked for it.

>>> with counted() as counts:
...     numbers = torch.arange(3.0).to(DEVICE)
...     total = float((2 * numbers).sum())
>>> total, counts.launches, [(event.kind, event.operation) for event in counts.events]
(6.0, 2, [('to device', '_to_copy'), ('read', '_local_scalar_dense')])

`DEVICE` is PyTorch's "meta" device, which no code under test uses otherwise: it needs no registration, so that other
tests in the process do not notice, and autograd runs its backward pass in the calling thread. Two things differ from
CUDA: a copy to the device does not block if it is asked for with ``non_blocking=True``, whether or not its memory is
pinned; and an operation on a list of tensors counts as one launch.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stability

DEVICE = torch.device("meta")

COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
READS = {
    *("_local_scalar_dense", "equal", "allclose", "nonzero", "masked_select", "bincount", "_linalg_check_errors"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    # They look at whether the decomposition has succeeded.
    *("_linalg_eigh", "_linalg_eigvals", "_linalg_svd", "linalg_eig"),
}
"""Operations after which the host knows something that the device has computed."""

NO_LAUNCH = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
    *("_unsafe_view", "_local_scalar_dense"),
}
"""Operations that launch nothing on the device, beside views."""

TAKES_A_HOST_NUMBER = {"where", "masked_fill", "masked_fill_", "fill", "fill_"}
"""Beside pointwise operations, those that take a CPU tensor without axes as a number."""

Kind = Literal["to device", "to host", "read"]


@dataclass(frozen=True)
class Event:
    """A copy between host and device, or a read by the host: by which *operation* and, as "file:line code", where."""

    kind: Kind
    operation: str
    blocking: bool
    line: str


@dataclass(eq=False)
class Counts:
    """What happened on the device: launches by operation, and copies and reads in their order."""

    operations: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """The number of operations on the device, without views and allocations."""
        return self.operations.total()

    @property
    def copies(self) -> list[Event]:
        """Copies in either direction."""
        return [event for event in self.events if event.kind != "read"]

    @property
    def reads(self) -> list[Event]:
        """What tells the host a number of the device, copies to the host included."""
        return [event for event in self.events if event.kind != "to device"]

    @property
    def waits(self) -> list[Event]:
        """All that the host waits for: reads, and copies that block."""
        return [event for event in self.events if event.blocking]


_listening: list[Counts] = []


@contextmanager
def pretended() -> Iterator[None]:
    """Let tensors be made on `DEVICE` and moved there; pinned memory is ordinary memory."""
    with _Functions(), _Operations():
        yield


@contextmanager
def counted() -> Iterator[Counts]:
    """Do what `pretended` does and yield the counts of what happens on the device until the end."""
    counts = Counts()
    _listening.append(counts)
    try:
        with pretended():
            yield counts
    finally:
        _listening.remove(counts)


class OnDevice(torch.Tensor):
    """A tensor on `DEVICE`; its values lie in *values*, a tensor on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r})"


class _Operations(TorchDispatchMode):
    """Sees every operation, those that make a tensor on the device out of nothing as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Changes the calls that PyTorch would answer for its meta device before any operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("pin_memory"):
            kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if func in _FROM_DATA and _is_device(kwargs.get("device")):
            return func(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(DEVICE)
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func in _METHODS and args[0].device == DEVICE:
            return _METHODS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _getitem(tensor: Tensor, index: Any) -> Tensor:
    return tensor[_with_host_tensors(index)]


def _setitem(tensor: Tensor, index: Any, value: Any) -> None:
    # CUDA takes a number from the CPU.
    number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=tensor.dtype)
    tensor[_with_host_tensors(index)] = number


def _with_host_tensors(index: Any) -> Any:
    """Return an index with tensors on the CPU in place of lists and arrays, from where a GPU would copy them."""
    if isinstance(index, tuple):
        return tuple(map(_with_host_tensors, index))
    return torch.as_tensor(index) if isinstance(index, list | np.ndarray) else index


_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
_METHODS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.new_tensor: lambda like, data, dtype=None: torch.tensor(data, dtype=dtype or like.dtype).to(DEVICE),
}


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one operation on the values of its tensors, and note what it is on the device."""
    tensors = _tensors_in(args)
    if kwargs:
        tensors += _tensors_in(kwargs.values())
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if any(tensor.is_meta and not isinstance(tensor, OnDevice) for tensor in tensors):
        raise RuntimeError(f"{func}: a tensor was made on the device in a way that is not pretended here")
    if not ours and not _is_device(kwargs.get("device")):
        return func(*args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    onto = bool(ours) if kwargs.get("device") is None else _is_device(kwargs["device"])
    views = func.is_view or torch.Tag.inplace_view in func.tags
    launches = onto and not views and name not in NO_LAUNCH
    if name in COPIES:
        onto = onto if name == "_to_copy" else isinstance(args[0], OnDevice)
        launches = isinstance(args[name == "copy_"], OnDevice) == onto
        if not launches:
            _note_copy(name, onto, args, kwargs)
    elif name in INDEXING:
        _note_index(name, *args[:3])
    else:
        _refuse_mixing(func, name, args, tensors)
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            _note("read", name)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*map(_values, args), **{key: _values(value) for key, value in kwargs.items()})
    if torch.Tag.inplace_view in func.tags:
        # The shape of the wrapper changes as that of its values has.
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    for counts in _listening if launches else ():
        counts.operations[name] += 1
    return _wrapped(result, ours) if onto else result


def _tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += [each for each in argument if isinstance(each, Tensor)]
    return found


def _values(argument: Any) -> Any:
    if isinstance(argument, OnDevice):
        return argument.values
    return [_values(each) for each in argument] if isinstance(argument, list | tuple) else argument


def _wrapped(result: Any, inputs: Sequence[OnDevice]) -> Any:
    """Return what an operation has made as tensors on the device: its own inputs where it has changed them."""
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(each, inputs) for each in result)
    if not isinstance(result, Tensor):
        return result
    changed = next((tensor for tensor in inputs if tensor.values is result), None)
    if changed is None:
        return OnDevice(result)
    if changed.shape != result.shape:
        raise RuntimeError(f"a tensor of shape {tuple(changed.shape)} was resized to {tuple(result.shape)} in place")
    return changed


def _refuse_mixing(func: Any, name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise `RuntimeError` for tensors on two devices, save for a number on the CPU where CUDA takes one."""
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if not elsewhere or len(elsewhere) == len(tensors):
        return
    takes_number = torch.Tag.pointwise in func.tags or name in TAKES_A_HOST_NUMBER
    changes_cpu = func._schema.is_mutable and not isinstance(args[0], OnDevice)
    if not takes_number or changes_cpu or any(tensor.dim() for tensor in elsewhere):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in elsewhere)
        raise RuntimeError(f"{name}: expected all tensors on one device, but those of shape {shapes} are on the CPU")


def _note_copy(name: str, onto: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    asked = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
    if onto:
        _note("to device", name, blocking=not asked)
    else:
        _note("to host", name)


def _note_index(name: str, target: Tensor, indices: Sequence[Tensor | None], value: Tensor | None = None) -> None:
    """Note what CUDA waits for where *target* is indexed, or raise `RuntimeError` if it would refuse to."""
    places = [index for index in indices if index is not None]
    wrong = value is not None and not isinstance(value, OnDevice) and value.dim() > 0
    if wrong or not isinstance(target, OnDevice):
        raise RuntimeError(f"{name}: expected what is indexed, and what is written there, on the device of the index")
    fills = value is not None and not isinstance(value, OnDevice) and len(places) == 1 and _is_mask(places[0])
    for index in places:
        if not isinstance(index, OnDevice):
            _note("to device", name)
        elif _is_mask(index) and not fills:
            _note("read", name)
    if value is not None and not isinstance(value, OnDevice) and not fills:
        _note("to device", name)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _note(kind: Kind, operation: str, *, blocking: bool = True) -> None:
    if _listening:
        event = Event(kind, operation, blocking, _line())
        for counts in _listening:
            counts.events.append(event)


PACKAGE = f"{Path(stability.__file__).parent}/"
BENEATH = (f"{Path(torch.__file__).parent}/", __file__)


def _line() -> str:
    """Return "file:line code" of the innermost call in the package, else of the innermost one that is not PyTorch's."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    in_package = (place for place in frames if place[0].startswith(PACKAGE))
    outside = (place for place in frames if not place[0].startswith(BENEATH))
    path, number = next(in_package, None) or next(outside)
    return f"{path.removeprefix(f'{Path(PACKAGE).parent}/')}:{number} {linecache.getline(path, number).strip()}"
