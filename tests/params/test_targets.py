import pytest

from workbench.errors import ParameterError
from workbench.params.targets import Named, Target, not_answered

PD = Named(label="1p4d lmcache", topology="1p4d")
RIVAL = Named(label="5a lmcache", topology="5a", subject=False)
ON_GPU = Named(label="tiny 1p1d nixl, 1+1 GPU", topology="1p1d", model="tiny")
WITH_COLON = Named(label="llama:8b 1p1d nixl", topology="1p1d", model="llama:8b")


@pytest.mark.parametrize(
    ("text", "who", "metric", "measure", "share", "reference"),
    [
        ("store-warm ttft cut >= 60%", "store-warm", "ttft_s", "cut", 0.6, "cold"),
        ("pd tpot within 20% of aggregated", "pd", "tpot_s", "within", 0.2, "aggregated"),
        ("pd throughput >= 150%", "pd", "system_tps", "of", 1.5, "aggregated"),
        ("PD Throughput gain>=12.5 %", "PD", "system_tps", "gain", 0.125, "aggregated"),
        ("2a lmcache engine-warm E2E <= 40%", "2a lmcache engine-warm", "e2e_s", "of", 0.4, "cold"),
        ("pd store-warm ttft cut >= 60% of cold", "pd store-warm", "ttft_s", "cut", 0.6, "cold"),
    ],
)
def test_a_sentence_is_read(text, who, metric, measure, share, reference):
    found = Target.parse(text)
    assert (found.who, found.metric, found.measure) == (who, metric, measure)
    assert (found.share, found.reference) == (pytest.approx(share), reference)


@pytest.mark.parametrize(
    "text",
    [
        "", "ttft", "pd ttft fast", "pd ttft >= 150", "pd ttft cut within 5%", "pd latency >= 5%",
        "throughput cut >= 5%", "ttft gain >= 5%", "ttft cut >= 100%", "ttft within 0%",
        "ttft >= -5%", "pd ttft cut >= 60% of nothing", "pd ttft cut > 60%",
    ],
)  # fmt: skip
def test_another_form_is_refused_with_what_is_allowed_and_an_example(text):
    with pytest.raises(ParameterError, match=r"METRIC \(ttft.*example: -p targets 'store-"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "arm", "pass_name", "selected"),
    [
        ("store-warm ttft cut >= 60%", PD, "store-warm", True),
        ("store-warm ttft cut >= 60%", PD, "engine-warm", False),
        ("store-warm ttft cut >= 60%", RIVAL, "store-warm", False),  # nobody asked for it
        ("5a lmcache store-warm ttft cut >= 60%", RIVAL, "store-warm", True),
        ("1p4d store-warm ttft cut >= 60%", PD, "store-warm", True),
        ("pd store-warm ttft cut >= 60% of cold", PD, "store-warm", True),
        ("pd store-warm ttft cut >= 60% of cold", RIVAL, "store-warm", False),
        ("1p1d nixl engine-warm ttft cut >= 60%", ON_GPU, "engine-warm", True),
        ("tiny: engine-warm ttft cut >= 60%", ON_GPU, "engine-warm", True),
        ("other: engine-warm ttft cut >= 60%", ON_GPU, "engine-warm", False),
        ("Tiny: Engine-Warm ttft cut >= 60%", ON_GPU, "engine-warm", True),
        ("1P4D LMCache  store-warm ttft cut >= 60%", PD, "store-warm", True),
        ("llama:8b: engine-warm ttft cut >= 60%", WITH_COLON, "engine-warm", True),
    ],
)
def test_which_comparisons_with_cold_a_sentence_is_about(text, arm, pass_name, selected):
    assert Target.parse(text).selects("cache-state", arm, pass_name) is selected
    assert not Target.parse(text).selects("opponent", arm, pass_name)


def test_without_a_pass_the_cold_one_is_compared_with_the_baseline():
    target = Target.parse("pd throughput >= 150%")
    assert target.selects("opponent", PD, "cold")
    assert not target.selects("opponent", PD, "engine-warm")
    assert Target.parse("pd cold at 2/s throughput >= 150%").selects("opponent", PD, "cold at 2/s")


def test_within_is_symmetric_and_the_others_have_one_side():
    within = Target.parse("pd tpot within 20%")
    assert [within.holds(x) for x in (0.83, 0.84, 1.0, 1.2, 1.21)] == [
        False, True, True, True, False,
    ]  # fmt: skip
    cut = Target.parse("store-warm ttft cut >= 60%")
    assert [cut.holds(x) for x in (0.39, 0.41)] == [True, False]
    most = Target.parse("store-warm ttft <= 40%")
    assert [most.holds(x) for x in (0.39, 0.41)] == [True, False]
    gain = Target.parse("pd throughput gain >= 150%")
    assert [gain.holds(x) for x in (2.4, 2.6)] == [False, True]


def test_a_refusal_names_what_is_measured():
    answered = [("cache-state", PD, "store-warm"), ("opponent", PD, "cold")]
    assert not_answered(Target.parse("store-warm ttft cut >= 60%"), answered) == ""
    refusal = not_answered(Target.parse("engine-warm ttft cut >= 60%"), answered)
    assert "this plan compares 1p4d lmcache, store-warm with cold, got 'engine-warm" in refusal
    assert "compares nothing with aggregated" in not_answered(
        Target.parse("pd tpot within 5%"), answered[:1]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft cut >= 60%", "for a pass to compare with cold (store-warm, engine-warm), got 'ttft"),
        ("1p1d nixl ttft cut >= 60%", "for a pass to compare with cold"),
        ("x: pd throughput >= 150%", "without a model, or of one of tiny, got 'x: pd"),
        ("tiny: 3p1d throughput >= 150% of aggregated", "this plan compares tiny 1p1d nixl"),
    ],
)
def test_a_refusal_names_what_is_wrong(text, said):
    answered = [
        ("cache-state", ON_GPU, "store-warm"),
        ("cache-state", ON_GPU, "engine-warm"),
        ("opponent", ON_GPU, "cold"),
    ]
    assert said in not_answered(Target.parse(text), answered)


def test_a_run_of_one_model_has_no_model_to_name():
    refusal = not_answered(Target.parse("x: pd throughput >= 150%"), [("opponent", PD, "cold")])
    assert "without a model, since only one is measured" in refusal
