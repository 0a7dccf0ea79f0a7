"""Readings on an accelerator: the CPU's numbers, and launches, copies and reads that do not grow with the replicas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, counted, pretended
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from stability import devices
from stability.curvature import spectrum
from stability.curvature.lanczos import BLOCKED_FROM, lanczos
from stability.curvature.products import hessian_of, replicas_at_once
from stability.datasets import dataset
from stability.execute import planning
from stability.execute.planning import plan_groups
from stability.grid import Group, runs_of
from stability.landscape import directions, slice2d
from stability.probes import HeldOut, Replica, probe
from stability.study import Schedule, parse_study
from stability.train import Trainer
from stability.train.memory import bytes_of_data, bytes_per_reading
from stability.train.probe_runner import read

CPU = torch.device("cpu")

OPTIONS = {
    "curvature": {"batches": 2, "steps": 4, "edge_steps": 3, "trace_probes": 2},
    "few_shot": {"draws": 1},
    "flatness": {"batches": 2, "draws": 3},
    "gradient_noise": {"batches": 3},
    "linear_mode": {"fork": 2, "points": 3},
    "matched_gradient_noise": {"batches": 2},
    "scalar_gradients": {"batches": 2},
}
COMPUTED_HERE = sorted(set(probe) - {"cost", "cross_check"})
"""Probes that an accelerator computes for all replicas together: cost takes them one by one, cross_check on the CPU."""


def study_of(name, tiny_text, seeds, noise=(0.0,), arm="clip"):
    study = parse_study(tiny_text.split("[[claims]]")[0], "tiny.toml", "tiny")
    grid = study.grid.model_copy(update={"seeds": seeds, "arms": (arm,), "batch_size": (8,), "noise": noise})
    schedule = Schedule.model_validate(OPTIONS.get(name, {}))
    return study.model_copy(update={"probes": {name: schedule}, "grid": grid})


def trainer_of(study, device):
    trainer = Trainer(study, Group("g", runs_of(study)), study.pairs(), CPU)
    trainer.step()
    trainer.step()
    if device == CPU:
        return trainer
    there = Trainer(study, Group("g", runs_of(study)), study.pairs(), device)
    population, trained = there.population, trainer.population
    # The CPU's own parameters: what differs is the reading alone.
    population.theta.copy_(trained.theta)
    for name, buffer in population.optimizer.buffers.items():
        buffer.copy_(trained.optimizer.buffers[name])
    if population.update is not None:
        population.update.copy_(trained.update)
    population.optimizer.count.copy_(trained.optimizer.count)
    population.optimizer.steps, population.step = trained.optimizer.steps, trained.step
    return there


def children_of(trainer):
    theta = trainer.population.theta
    return [theta * 1.01, theta * 0.98]


@pytest.mark.parametrize(
    ("name", "noise"),
    [*((name, 0.0) for name in COMPUTED_HERE), ("gradient_noise", 0.4), ("matched_gradient_noise", 0.4)],
)
def test_an_accelerator_reads_what_a_cpu_reads_also_beside_a_replica_that_is_not_finite(tiny_text, name, noise):
    study = study_of(name, tiny_text, seeds=3, noise=(noise,), arm="siglip-log-b")
    on_cpu = trainer_of(study, CPU)
    on_cpu.population.theta[1] = torch.nan
    expected = on_cpu.read(name, children_of(on_cpu))
    with pretended():
        there = trainer_of(study, DEVICE)
        there.population.theta[1] = torch.nan
        found = there.read(name, children_of(there))
    assert found.replicas == expected.replicas
    assert found.values.keys() == expected.values.keys()
    for key, value in expected.values.items():
        assert found.values[key].device == CPU
        assert_close(found.values[key].double(), value.double(), rtol=2e-3, atol=2e-4, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", COMPUTED_HERE)
def test_launches_copies_and_reads_do_not_grow_with_the_replicas(tiny_text, name):
    found = []
    text = tiny_text.replace('name = "digits"', 'name = "latent"\npairs = 100')
    text = text.replace('"token_transformer", width = 4, heads = 1', '"mlp", width = 8, depth = 1')
    for seeds in (2, 7):
        with pretended():
            trainer = trainer_of(study_of(name, text, seeds), DEVICE)
            children = children_of(trainer)
            trainer.read(name, children)  # finds once what later readings share
        with counted() as counts:
            trainer.read(name, children)
        found.append((counts.launches, len(counts.copies), len(counts.reads)))
        blocking = [event for event in counts.events if event.kind == "to device" and event.blocking]
        assert len(blocking) <= 2, blocking
    assert found[0] == found[1]
    # Curvature reads once for each of four spectra.
    assert found[0][2] <= 7


def test_little_memory_makes_several_narrow_readings_of_the_same_numbers(tiny_text, monkeypatch):
    with pretended():
        trainer = trainer_of(study_of("retrieval", tiny_text, seeds=5), DEVICE)
        wide = trainer.read("retrieval").values
        population = trainer.population
        monkeypatch.setattr(devices, "UNKNOWN_MEMORY", 0)
        with counted() as counts:
            narrow = read(population, "retrieval").values
    for key, value in wide.items():
        assert_close(narrow[key], value)
    assert sum(event.kind == "to device" for event in counts.events) >= 5


def test_the_bytes_of_a_reading_grow_with_what_its_probe_holds(tiny_text):
    def bytes_of_reading(name, **options):
        trainer = trainer_of(study_of(name, tiny_text, seeds=2), CPU)
        return bytes_per_reading(trainer.population, name, options)

    held = len(trainer_of(study_of("retrieval", tiny_text, seeds=2), CPU).population.held_out.caption)
    assert bytes_of_reading("retrieval") > 16 * 4 * held**2 > bytes_of_reading("separability")
    few, many = (bytes_of_reading("curvature", batches=count, steps=4) for count in (2, 12))
    assert many > 3 * few
    # Batches that are taken in turn lie there, but what is computed from them does not.
    one_by_one, all_at_once = (bytes_of_reading(name, batches=12) for name in ("gradient_noise", "scalar_gradients"))
    assert all_at_once > 3 * one_by_one


def diagonal_problem():
    """Return four operators as diagonals (4, P): full, of rank 2, not finite, full again; and starts."""
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.randn(4, 40, generator=generator, dtype=torch.float64)
    diagonal[1] = 0
    diagonal[1, :2] = torch.tensor([3.0, -1.0])
    diagonal[2] = torch.nan
    return diagonal, torch.randn(4, 40, generator=generator, dtype=torch.float64)


def lanczos_there(diagonal, starts, steps):
    there = diagonal.to(DEVICE)
    run = lanczos(lambda vectors: there * vectors, starts.to(DEVICE), steps, seed=3)
    return run.theta.cpu(), run.weights.cpu(), run.basis.cpu()


def test_lanczos_on_an_accelerator_is_read_once_and_finds_what_a_cpu_finds():
    diagonal, starts = diagonal_problem()
    full = [0, 3]
    with counted() as counts:
        theta, weights, _ = lanczos_there(diagonal[full], starts[full], 12)
    assert len(counts.reads) == 1 + 3  # three more by this test
    expected = lanczos(lambda vectors: diagonal[full] * vectors, starts[full], 12, seed=3)
    assert_close(theta, expected.theta, rtol=1e-10, atol=1e-10)
    assert_close(weights, expected.weights, rtol=1e-8, atol=1e-10)


def test_an_exhausted_space_and_a_nan_leave_the_other_lanes_of_an_accelerator_bit_for_bit_as_they_are():
    diagonal, starts = diagonal_problem()
    with pretended():
        theta, weights, basis = lanczos_there(diagonal, starts, 12)
        sound = [0, 0, 0, 3]
        others_theta, others_weights, _ = lanczos_there(diagonal[sound], starts[sound], 12)
    for lane in (0, 3):
        assert torch.equal(theta[lane], others_theta[lane])
        assert torch.equal(weights[lane], others_weights[lane])
    assert theta[2].isnan().all()
    # Of rank 2: three nodes with weight, the others exact eigenvalues without one, on an orthonormal basis.
    on_cpu = lanczos(lambda vectors: diagonal * vectors, starts, 12, seed=3)
    assert_close(theta[1], on_cpu.theta[1], rtol=1e-10, atol=1e-10)
    assert_close(basis[1] @ basis[1].T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(theta[1, [0, -1]], torch.tensor([-1.0, 3.0], dtype=torch.float64), rtol=1e-10, atol=0)


def test_long_vectors_are_orthogonal_on_an_accelerator_too():
    diagonal = torch.linspace(-1, 30, BLOCKED_FROM)[None].expand(2, -1)
    starts = torch.randn(2, BLOCKED_FROM, generator=torch.Generator().manual_seed(1))
    with pretended():
        *_, basis = lanczos_there(diagonal, starts, 30)
    for rows in basis.double():
        assert_close(rows @ rows.T, torch.eye(30, dtype=torch.float64), rtol=0, atol=1e-5)


def quartic(params, batch):
    return ((batch @ params["w"]) ** 4).mean() + (params["w"] ** 2 * torch.tensor([3.0, -1.0, 0.5]).to(batch)).sum()


def test_a_spectrum_on_an_accelerator_is_that_of_a_cpu_by_whichever_groups(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    params = {"w": torch.randn(6, 3, generator=generator, dtype=torch.float64)}
    batches = torch.randn(6, 4, 7, 3, generator=generator, dtype=torch.float64)
    weights = {"w": params["w"].abs() + 0.1}
    how = {"batched": True, "steps": 2, "trace_probes": 2}
    expected = spectrum(quartic, params, batches=batches, preconditioner=weights, **how)
    with pretended():
        there, data, scale = pytree.tree_map(lambda leaf: leaf.to(DEVICE), (params, batches, weights))
        assert len(replicas_at_once(quartic, there, batches=data)) == 1
        spectra = [spectrum(quartic, there, batches=data, preconditioner=scale, **how)]
        monkeypatch.setattr(devices, "UNKNOWN_MEMORY", 2**17)
        assert 1 < len(replicas_at_once(quartic, there, batches=data)) <= 3
        spectra.append(spectrum(quartic, there, batches=data, preconditioner=scale, **how))
        spectra.append(spectrum(quartic, there, batches=data, preconditioner=scale, retain_graph=False, **how))
        for found in spectra:
            for field in ("eigenvalues_high", "eigenvalues_low", "trace", "nodes", "weights"):
                assert_close(getattr(found, field).cpu(), getattr(expected, field), rtol=1e-9, atol=1e-9)


def test_a_point_that_is_not_finite_is_nan_on_an_accelerator_too():
    points = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [0.5, -1.0]])
    with pretended():
        hessian = hessian_of(lambda p: (p["w"] ** 3).sum(), {"w": points.to(DEVICE)}, batched=True)
        product = hessian.product(torch.ones(1, 3, 2).to(DEVICE)).cpu()[0]
    assert_close(product[[0, 2]], 6 * points[[0, 2]])
    assert product[1].isnan().all()


def shaken_replica():
    """Return two replicas of a float64 network, on the CPU."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = drawn(9, 4)
    return {
        "params": {
            "image.w": drawn(2, 5, 4),
            "image.b": drawn(2, 5),
            "loss.log_scale": drawn(2),
            "loss.bias": drawn(2),
        },
        "batches": {"x": drawn(2, 3, 6, 4)},
        "held_out": HeldOut(samples, samples[:, :3], torch.arange(9) // 2, torch.arange(9) % 3 - 1, torch.empty(0)),
    }


def shaken_loss(params, batch):
    hidden = torch.tanh(batch["x"] @ params["image.w"].T + params["image.b"])
    logits = params["loss.log_scale"].exp() * hidden @ hidden.T + params["loss.bias"]
    match = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return torch.nn.functional.softplus(-match * logits).mean()


def measured(name, tensors, **options):
    found = probe[name](
        Replica(
            objective=shaken_loss,
            embed_image=lambda params, x: torch.nn.functional.normalize(x @ params["image.w"].T[:, :3], dim=-1),
            embed_text=lambda params, x: torch.nn.functional.normalize(x, dim=-1),
            embed_extra_modalities=lambda params, samples: (),
            preconditioner={},
            learning_rate=tensors["params"]["loss.bias"],
            constant_rate=True,
            chance=2.0,
            **tensors,
        ),
        **options,
    )
    return {key: value.cpu() for key, value in found.items()}


def there(tensors):
    held = tensors["held_out"]
    fields = {field.name: getattr(held, field.name) for field in dataclasses.fields(held)}
    moved = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(DEVICE), tensors | {"held_out": fields})
    return moved | {"held_out": HeldOut(**moved["held_out"])}


@pytest.mark.parametrize("memory", [2**34, 1], ids=["all draws at once", "draw by draw"])
def test_flatness_of_all_draws_together_is_that_of_one_after_the_other(monkeypatch, memory):
    tensors = shaken_replica()
    expected = measured("flatness", tensors, batches=3, draws=5)
    monkeypatch.setattr(devices, "UNKNOWN_MEMORY", memory)
    with counted() as counts:
        found = measured("flatness", there(tensors), batches=3, draws=5)
    for key, value in expected.items():
        assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=key)
    copied = [event for event in counts.events if event.kind == "to device" and "flatness" in event.line]
    assert len(copied) <= 1


@pytest.mark.parametrize("name", ["few_shot", "separability"])
def test_embeddings_of_all_replicas_come_to_the_host_at_once(name):
    tensors = shaken_replica()
    tensors["params"]["image.w"][1] = torch.nan
    expected = measured(name, tensors)
    with counted() as counts:
        moved = there(tensors)
        already = len(counts.reads)
        found = measured(name, moved)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key].numpy(), value.numpy())
    from_device = [event for event in counts.reads[already:] if event.line.startswith("stability")]
    # The embeddings, and once for all readings the labels.
    assert len(from_device) <= 3


def test_a_plane_of_a_landscape_is_read_once_whatever_its_points(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    point = {"w": torch.randn(3, generator=generator, dtype=torch.float64)}
    batches = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64)
    expected = slice2d(quartic, point, directions(point, vectors="filter"), points=5, batches=batches)
    reads = []
    for memory in (2**34, 2**13):
        monkeypatch.setattr(devices, "UNKNOWN_MEMORY", memory)
        with counted() as counts:
            there, data = pytree.tree_map(lambda leaf: leaf.to(DEVICE), (point, batches))
            axes = directions(there, vectors="filter")
            found = slice2d(quartic, there, axes, points=5, batches=data)
        reads.append(len(counts.reads))
        assert_close(found.values, expected.values)
        assert_close(found.slope, expected.slope)
        assert_close(found.curvature, expected.curvature)
    # Directions, values, slope and curvature.
    assert reads[0] == reads[1] <= 5


def test_data_on_an_accelerator_narrow_its_groups(tiny_text, monkeypatch):
    study = study_of("retrieval", tiny_text, seeds=200)
    pairs = study.pairs()
    clean = bytes_of_data(study, pairs)
    assert clean.own == 0
    assert clean.shared == sum(_bytes(samples[pairs.train]) for samples in (pairs.image, pairs.text))
    assert clean.held_out > sum(_bytes(samples[pairs.held_out]) for samples in (pairs.image, pairs.text))
    noisy_study = study_of("retrieval", tiny_text, seeds=200, noise=(0.0, 0.4))
    noisy = bytes_of_data(noisy_study, pairs)
    # Wrong captions: the texts are each replica's own, the images stay shared.
    assert noisy.own == _bytes(pairs.text[pairs.train])
    assert noisy.shared == clean.shared - noisy.own

    def widest(study, memory):
        monkeypatch.setattr(planning, "device_memory", lambda device: memory)
        plan = plan_groups(study, torch.device("cuda"), runs_of(study))
        return max(len(group.runs) for group in plan.groups)

    need = plan_groups(study, CPU, runs_of(study)).bytes["clip 8"]
    assert widest(study, clean.held_out + clean.shared + 2 * 50 * need + need) == 50
    memory = noisy.held_out + noisy.shared + 2 * 50 * (need + noisy.own) + need
    # So many texts are left on the host.
    assert 50 < widest(noisy_study, memory) <= (memory - noisy.held_out) // 2 // need
    monkeypatch.setattr(planning, "HOST_SHARE", 0.5)
    assert widest(noisy_study, memory) == 50
    assert widest(study, clean.held_out) == 2


def test_a_part_of_the_pairs_is_each_replicas_own(tiny_text):
    study = study_of("retrieval", tiny_text, seeds=2)
    study = study.model_copy(update={"grid": study.grid.model_copy(update={"train_pairs": (100,)})})
    pairs = study.pairs()
    found = bytes_of_data(study, pairs)
    assert (found.shared, found.own) == (0, sum(_bytes(samples[:100]) for samples in (pairs.image, pairs.text)))
    anew = study.model_copy(update={"data": study.data.model_copy(update={"corruption": "fresh"})})
    # Pairs that are corrupted anew at every step lie on the host.
    assert (bytes_of_data(anew, pairs).shared, bytes_of_data(anew, pairs).own) == (0, 0)


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


def test_positions_of_matches_are_those_of_equal_captions():
    pairs = dataset["digits"]()
    part = pairs.held_out[:30]
    held = HeldOut(pairs.image[part], pairs.text[part], pairs.caption[part], torch.tensor([1, -1, 0]), pairs.prompts)
    same = held.caption[:, None] == held.caption
    table = torch.arange(900).view(30, 30)
    assert torch.equal(held.matches, table[same])
    assert torch.equal(held.mismatches, table[~same])
    assert (held.labelled.tolist(), held.classes.tolist()) == ([0, 2], [1, 0])
