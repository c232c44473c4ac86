from __future__ import annotations

from workbench.load.catalogue import WORKLOADS, build
from workbench.load.workload import texts
from workbench.load.workload.scenarios import SCENARIOS
from workbench.load.workload.workload import short
from workbench.params import shared


def test_a_workload_is_found_by_the_name_that_a_parameter_gives_it() -> None:
    assert build("short", salt="s", requests=2).hash == short(salt="s", requests=2).hash
    assert set(WORKLOADS) == set(shared.WORKLOADS)
    assert set(SCENARIOS) == set(shared.SCENARIOS)
    assert texts.NAMES == shared.TEXTS
