"""Plans: what a study will cost, from real steps, and how memory is told."""

from __future__ import annotations

import time

import pytest
import torch

from stability.execute.machine import peak_of
from stability.execute.planning import _cost_shape, _measured, estimate, measure, plan_groups, workers_on
from stability.grid import runs_of
from stability.probes import Measure, Replica, probe
from stability.registry import InputError
from stability.study import Schedule

CPU = torch.device("cpu")


def test_the_peak_of_memory_tells_what_was_touched_even_if_freed_since_and_begins_anew():
    with peak_of(CPU) as most:
        before = most()
        if before is None:
            pytest.skip("this system does not tell")
        block = torch.ones(50_000_000)
        del block
        first = most()
    with peak_of(CPU) as most:
        second = most()
    assert 190e6 < first - before < 230e6
    assert abs(second - before) < 20e6


def test_every_arm_and_shape_is_measured_once_and_probes_for_one_arm_of_each_shape(brief):
    plan = plan_groups(brief, CPU, runs_of(brief))
    samples, start = _measured(brief, plan, CPU, steps=1, workers=1, executor=None)
    assert samples.keys() == {(group.arm, _cost_shape(brief, group)) for group in plan.groups}
    assert start >= 0
    by_shape: dict[object, set[float]] = {}
    for (_, shape), sample in samples.items():
        by_shape.setdefault(shape, set()).add(sample.timing.probes)
        assert min(sample.timing.ready, sample.timing.steps, sample.timing.probes, sample.bytes) > 0
    assert all(len(probes) == 1 for probes in by_shape.values())


def test_what_a_process_loads_at_its_first_reading_is_no_cost_of_every_group(brief, monkeypatch):
    """A group's probes are timed as later ones find them; the loading stands apart, once."""
    monkeypatch.setattr(probe, "_variants", dict(probe._variants))
    begun = []

    @probe(name="loads-once", measures=(Measure("loaded", "Loaded", "Whether it was."),))
    def loads_once(replica: Replica) -> dict[str, torch.Tensor]:
        if not begun:
            time.sleep(0.8)
        begun.append(True)
        return {"loaded": torch.ones(())}

    study = brief.model_copy(update={"probes": {"loads-once": Schedule(every=1)}, "claims": ()})
    group = plan_groups(study, CPU, runs_of(study)).groups[0]
    found = [measure(study, group, CPU, bytes_expected=1, steps=1, with_probes=True).timing for _ in range(2)]
    assert found[0].loading > 0.6
    assert max(found[0].probes, found[1].probes + found[1].loading) < 0.6


def test_where_the_system_does_not_tell_the_peak_the_expected_bytes_stand_in(brief, monkeypatch):
    group = plan_groups(brief, CPU, runs_of(brief)).groups[0]
    monkeypatch.setattr("pathlib.Path.write_text", _refuse)
    sample = measure(brief, group, CPU, bytes_expected=10**9, steps=1, with_probes=False)
    assert sample.bytes == 10**9
    assert sample.timing.probes == 0


def _refuse(*arguments: object, **options: object) -> int:
    raise OSError("no such file")


def test_more_workers_take_less_time_and_more_memory_with_the_same_groups(brief):
    one, four = (estimate(brief, CPU, steps=1, workers=count) for count in (1, 4))
    assert (one.groups, one.workers, four.workers) == (four.groups, 1, 4)
    assert four.bytes > 2 * one.bytes
    assert four.seconds < one.seconds
    assert 0 <= one.start < one.seconds


@pytest.mark.parametrize("on", ["processes:0", "processes:²", "dask:tcp://there:8786", "locally", "processes:-1"])
def test_a_plan_knows_processes_of_this_machine_only(on):
    with pytest.raises(InputError, match="allowed where a study is planned: local, or processes:N with N at least 1"):
        workers_on(on, CPU)
