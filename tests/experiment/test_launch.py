"""What a launch counts for its passes."""

import pytest

from workbench.experiment.isolation import CounterReading, Made
from workbench.experiment.launch import Launch
from workbench.experiment.plan import Arm, Pass
from workbench.load.workload import reference
from workbench.metrics.prometheus import Counters
from workbench.serve.deployment import Deployment, Instance

PREFILL = Instance(name="prefill-0", role="prefill", url="http://127.0.0.1:1")
EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"


def reading(expired: float) -> CounterReading:
    counted = Counters(
        instance=PREFILL.name,
        read_at_s=0.0,
        values={(EXPIRED, ()): expired},
        cumulative=frozenset([EXPIRED]),
    )
    return CounterReading(engines={PREFILL.name: counted}, store=None)


@pytest.fixture
def launch() -> Launch:
    known = Deployment(url=PREFILL.url, instances=(PREFILL,))
    arm = Arm(label="nixl", role="attached", topology="1p1d", connector="nixl", passes=())
    return Launch(arm, 0, known)


def ended(launch: Launch, at: CounterReading, begun: CounterReading) -> float:
    """What had expired, in the account of a pass between two readings."""
    prompts = reference(requests=1, prompt_tokens=32, output_tokens=2, vocab_tokens=100, salt="a")
    counted = at.since(begun, Deployment(url=PREFILL.url, instances=(PREFILL,)))
    made = launch.ended(Pass(name="a", state="cold"), prompts, prompts, (), (), at, counted)
    assert made.nixl is not None
    return made.nixl.expired


def test_kv_that_expires_between_two_passes_is_in_the_account_of_the_second(launch: Launch):
    start, end, next_start, last = reading(1), reading(1), reading(4), reading(5)
    launch.begins(Made(), start)
    assert ended(launch, end, start) == 0  # what a warm-up lost is none of a pass
    launch.begins(Made(), next_start)
    assert ended(launch, last, next_start) == 4


def test_a_pass_that_broke_off_leaves_nothing_to_the_next(launch: Launch):
    launch.begins(Made(), reading(0))
    launch.begins(Made(), reading(3))
    assert ended(launch, reading(3), reading(3)) == 0
