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


def ended(launch: Launch, at: CounterReading, begun: CounterReading) -> tuple[float, float]:
    """What had expired between the readings of a pass, and before it."""
    prompts = reference(requests=1, prompt_tokens=32, output_tokens=2, vocab_tokens=100, salt="a")
    counted = at.since(begun, Deployment(url=PREFILL.url, instances=(PREFILL,)))
    made = launch.ended(Pass(name="a", state="cold"), prompts, prompts, (), (), at, counted)
    assert made.nixl is not None
    return made.nixl.expired, made.expired_before


def test_kv_that_expires_between_two_passes_is_told_with_the_second(launch: Launch):
    launch.begins(Made(), reading(1))
    # What had expired before the first pass, a warm-up lost.
    assert ended(launch, reading(1), reading(1)) == (0, 0)
    launch.begins(Made(), reading(4))
    assert ended(launch, reading(5), reading(4)) == (1, 3)
    launch.begins(Made(), reading(5))
    assert ended(launch, reading(5), reading(5)) == (0, 0)


def test_what_expired_before_a_pass_that_broke_off_is_told_with_the_next(launch: Launch):
    for begun in (0, 2, 3):
        launch.begins(Made(), reading(begun))
    assert ended(launch, reading(3), reading(3)) == (0, 3)


def test_what_a_restart_hides_is_not_made_up(launch: Launch):
    launch.begins(Made(), reading(5))
    assert ended(launch, reading(5), reading(5)) == (0, 0)
    launch.begins(Made(), reading(1))  # a counter that fell
    assert ended(launch, reading(1), reading(1)) == (0, 0)
