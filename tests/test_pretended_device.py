"""The pretended accelerator itself: it refuses what CUDA refuses, and each wait is counted at the line that asks."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, counted, pretended

from stability.corruptions import Values
from stability.train.data import false_negative_fraction


def line_of(word: str) -> str:
    """Return "file:line code" of the line of the calling test that holds *word*, as an event names it."""
    caller = inspect.currentframe().f_back
    lines, first = inspect.getsourcelines(caller.f_code)
    (offset,) = [place for place, line in enumerate(lines) if word in line and "line_of" not in line]
    return f"tests/{Path(__file__).name}:{first + offset} {lines[offset].strip()}"


def on_device(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape).to(DEVICE)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda own, other: own + other,
        lambda own, other: other.add_(own),
        lambda own, other: own @ other.T,
        lambda own, other: torch.cat([own, other]),
        lambda own, other: torch.where(own > 0, own, other),
        lambda own, other: own.gather(0, torch.zeros(2, 3, dtype=torch.int64)),
        lambda own, other: other[torch.ones(2, dtype=torch.int64).to(DEVICE)],
        lambda own, other: own.index_put_((torch.zeros(1, dtype=torch.int64).to(DEVICE),), other[:1]),
        lambda own, other: torch.vmap(torch.dot)(own, other),
        lambda own, other: torch.stack([own[0, 0], other[0, 0]]),
        lambda own, other: other[0, 0].add_(own[0, 0]),
    ],
)
def test_tensors_on_two_devices_are_refused(mixed):
    with pretended(), pytest.raises(RuntimeError):
        mixed(on_device(2, 3), torch.ones(2, 3))


def test_a_number_on_the_host_mixes_as_with_cuda():
    number = torch.tensor(2.0)
    with counted() as counts:
        rows = on_device(2)
        results = [number * rows, torch.where(rows > 1, rows, number), rows.masked_fill(rows > 1, number)]
        rows[:1] = 5.0
    assert counts.reads == []
    assert [event.operation for event in counts.copies] == ["_to_copy"]
    assert [result.cpu().tolist() for result in results] == [[2.0, 4.0], [2.0, 2.0], [1.0, 2.0]]
    assert rows.cpu().tolist() == [5.0, 2.0]


READS = {
    "item": lambda rows: rows.sum().item(),
    "bool": lambda rows: bool(rows.any()),
    "float": lambda rows: float(rows[0]),
    "nonzero": lambda rows: rows.nonzero(),
    "where with one argument": lambda rows: torch.where(rows > 0),
    "a boolean index": lambda rows: rows[rows > 1],
    "writing rows to a boolean index": lambda rows: rows.index_put_((rows > 2,), rows[:1].clone()),
    "masked_select": lambda rows: rows.masked_select(rows > 1),
    "unique": lambda rows: rows.unique(),
    "equal": lambda rows: torch.equal(rows, rows + 1),
    "allclose": lambda rows: torch.allclose(rows, rows),
    "bincount": lambda rows: rows.long().bincount(),
    "repeat_interleave": lambda rows: rows.repeat_interleave(rows.long()),
    "eigenvalues": lambda rows: torch.linalg.eigvalsh(torch.diag(rows)),
    "an index of one number": lambda rows: rows[rows.long()[0]],
}
TO_HOST = {
    "cpu": lambda rows: rows.cpu(),
    "not blocking all the same": lambda rows: rows.to("cpu", non_blocking=True),
    "tolist": lambda rows: rows.tolist(),
    "copy_": lambda rows: torch.empty(3).copy_(rows),
}
TO_DEVICE = {
    "to": lambda rows: torch.ones(3).to(DEVICE),
    "copy_": lambda rows: rows.copy_(torch.ones(3)),
    "tensor": lambda rows: torch.tensor([1.0, 2.0], device=DEVICE),
    "as_tensor": lambda rows: torch.as_tensor(np.ones(2), device=DEVICE),
    "new_tensor": lambda rows: rows.new_tensor([1.0]),
    "an index by a list": lambda rows: rows[[0, 2]],
    "an index by an array": lambda rows: rows[np.array([0, 2])],
    "an index by a tensor on the host": lambda rows: rows[torch.tensor([0, 2])],
    "a mask on the host": lambda rows: rows[torch.tensor([True, False, True])],
    "writing to a list": lambda rows: rows.__setitem__([0, 1], rows[1:].clone()),
    "writing a number to an index on the device": lambda rows: rows.__setitem__(rows.long() - 1, 1.0),
}
FREE = {
    "computing": lambda rows: (rows.exp() @ rows).softmax(-1),
    "making": lambda rows: torch.full((2,), 3.0, device=rows.device) + torch.arange(2, device=rows.device),
    "an index on the device": lambda rows: rows[rows.long() - 1],
    "slices": lambda rows: rows[None, 1:].T,
    "writing a number to a slice": lambda rows: rows.__setitem__(slice(2), 1.0),
    "writing a number to a mask": lambda rows: rows.__setitem__(rows > 1, 0.0),
    "a copy that is not waited for": lambda rows: torch.ones(3).pin_memory().to(DEVICE, non_blocking=True),
    "copy_ that is not waited for": lambda rows: rows.copy_(torch.ones(3), non_blocking=True),
}


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        pytest.param(kind, work, id=f"{kind}: {name}")
        for kind, table in (("read", READS), ("to host", TO_HOST), ("to device", TO_DEVICE))
        for name, work in table.items()
    ],
)
def test_what_the_host_waits_for_is_counted_once_at_its_line(kind, work):
    with pretended():
        rows = on_device(3)
        with counted() as counts:
            work(rows)
    assert [(event.kind, event.blocking) for event in counts.events] == [(kind, True)]
    assert counts.waits == counts.events
    assert len(counts.copies) == (kind != "read")
    assert len(counts.reads) == (kind != "to device")
    assert counts.events[0].line.startswith(f"tests/{Path(__file__).name}:{work.__code__.co_firstlineno} ")


@pytest.mark.parametrize("name", sorted(FREE))
def test_what_a_gpu_does_by_itself_is_not_waited_for(name):
    with pretended():
        rows = on_device(3)
        with counted() as counts:
            FREE[name](rows)
    assert counts.waits == []
    assert len(counts.copies) == name.endswith("not waited for")


def test_the_innermost_line_of_the_package_is_named_if_there_is_one():
    with pretended():
        rows = on_device(2, 2)
        with counted() as counts:
            false_negative_fraction(rows[0]).item()  # by the caller
            Values.of(rows)
    assert counts.events[0].line == line_of("by the caller")
    assert [event.kind for event in counts.events] == ["read"] * 3
    assert all(event.line.startswith("stability/corruptions/registry.py:") for event in counts.events[1:])
    assert all(
        event.line.endswith("return Values(float(samples.min()), float(samples.max()))") for event in counts.events[1:]
    )


def test_launches_are_operations_without_views_allocations_and_copies():
    with counted() as counts:
        rows = on_device(4)
        torch.empty(2, device=DEVICE)
        rows.view(2, 2).T[0].expand(3, 2).detach()
        assert counts.launches == 0
        torch.zeros(2, device=DEVICE)
        rows.mul_(2)
        rows.clone()
        rows.double()
    assert counts.operations == {"zeros": 1, "mul_": 1, "clone": 1, "_to_copy": 1}
    assert counts.launches == 4


def test_results_and_gradients_are_those_of_the_cpu():
    def gradient(weight):
        return torch.func.grad(lambda w: torch.tanh(w @ w.T).logsumexp(-1).sum())(weight)

    weight = torch.linspace(-1, 1, 12).reshape(3, 4)
    stack = torch.stack([weight, weight.flip(0)])
    with pretended():
        assert torch.equal(gradient(weight.to(DEVICE)).cpu(), gradient(weight))
        assert torch.equal(torch.vmap(gradient)(stack.to(DEVICE)).cpu(), torch.vmap(gradient)(stack))
        leaf = weight.to(DEVICE).requires_grad_()
        leaf.exp().sum().backward()
        assert torch.equal(leaf.grad.cpu(), weight.exp())


def test_what_changes_the_shape_of_a_tensor_in_place_launches_nothing():
    with counted() as counts:
        rows = on_device(2, 1)
        rows.squeeze_(1).unsqueeze_(0)
        assert counts.launches == 0
        assert rows.quantile(0.5, dim=1).cpu().tolist() == [1.5]
    assert rows.shape == (1, 2)


def test_nothing_is_left_behind():
    with counted() as counts:
        on_device(2)
    assert len(counts.events) == 1
    on_meta = torch.ones(2, device="meta") + 1
    assert type(on_meta) is torch.Tensor
    assert len(counts.events) == 1
