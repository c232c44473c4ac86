"""What a run over two models says, of rows in which a warm store gains as much as one likes."""

from dataclasses import replace

import pandas as pd
import pytest

from workbench.experiment.findings.compare import compare
from workbench.experiment.findings.findings import conclude
from workbench.experiment.findings.model_findings import models_finding
from workbench.experiment.result.facts import ArmFacts, RunFacts
from workbench.experiment.result.result import Result
from workbench.experiment.run import run_facts


@pytest.fixture
def plan(sweep):
    """Simulated, with the built-in models under names that tell them apart."""
    return sweep(
        topology="1p1d", engine="simulated", models="tiny,tiny-wide", workload="short", requests=2
    )


@pytest.fixture
def measured(rows, plan):
    """`measured(tiny=4.0)` are three rounds in which a warm store makes TTFT 4x faster."""

    def make(**gains):
        parts = []
        for arm in plan.arms:
            gain = gains[arm.model.replace("-", "_")]
            for number in range(3):
                for one in arm.passes:
                    share = 1.0 if one.state == "cold" else 1 / gain
                    noise = 1 + 0.01 * number * (one.state != "cold")
                    ttft_s = [noise * share * (1 + number), noise * share * (2 + number)]
                    mine = rows(arm.label, one.name, ttft_s, round=number)
                    connector = {"topology": arm.topology_text, "connector": arm.connector}
                    parts.append(mine.assign(model=arm.model, **connector))
        return pd.concat(parts, ignore_index=True)

    return make


def concluded(plan, requests):
    facts = RunFacts(notebook="pd_sweep", run_id="x", status="success")
    return conclude(facts, plan, requests=requests, passes=())


def test_arms_are_compared_with_those_of_their_own_model(plan, measured):
    rows = compare(plan, measured(tiny=4.0, tiny_wide=2.0))
    assert {row.arm.split()[0] for row in rows} == {"tiny", "tiny-wide"}
    assert all(row.arm.split()[0] == row.baseline_arm.split()[0] for row in rows)
    alone = [row for row in rows if row.arm.startswith("tiny ")]
    assert 2 * len(alone) == len(rows)


def test_the_headline_is_one_sentence_about_both(plan, measured):
    finding = models_finding(plan, compare(plan, measured(tiny=4.0, tiny_wide=2.0)), (), {}, (), {})
    assert finding == ("Warm KV store: TTFT 4.0x faster on tiny, 1.98x faster on tiny-wide", {})


def test_what_is_the_same_for_all_models_is_said_once(plan, measured):
    text, _ = models_finding(plan, compare(plan, measured(tiny=4.0, tiny_wide=4.0)), (), {}, (), {})
    assert text == "Warm KV store: TTFT 4.0x faster on tiny and tiny-wide"


def test_a_model_whose_arms_all_failed_is_left_out_and_named(plan, measured):
    rows = compare(plan, measured(tiny=4.0, tiny_wide=2.0))
    bad = tuple(arm.label for arm in plan.arms if arm.model == "tiny-wide")
    text, limiting = models_finding(plan, rows, (), {}, (), {"same text": bad})
    assert text == (
        "Warm KV store: TTFT 4.0x faster on tiny (left out: tiny-wide, responses differ)"
    )
    assert limiting == {}
    all_bad = {"same text": tuple(arm.label for arm in plan.arms)}
    text, limiting = models_finding(plan, rows, (), {}, (), all_bad)
    assert "tiny-wide" in text and limiting == all_bad


def test_key_numbers_of_the_models_stand_beside_one_another(plan, measured):
    facts = concluded(plan, measured(tiny=4.0, tiny_wide=2.0))
    labels = [card.label for card in facts.numbers]
    assert labels[:2] == [
        "TTFT speed-up, warm KV store vs cold (tiny 1p1d lmcache)",
        "TTFT speed-up, warm KV store vs cold (tiny-wide 1p1d lmcache)",
    ]
    assert [round(card.value, 1) for card in facts.numbers[:2]] == [4.0, 2.0]
    assert len(labels) == 4


def test_sentences_give_the_speed_ups_side_by_side_with_intervals(plan, measured):
    facts = concluded(plan, measured(tiny=4.0, tiny_wide=2.0))
    first = next(text for text in facts.sentences if "store-warm vs cold" in text)
    assert "1p1d lmcache, store-warm vs cold TTFT:" in first
    assert "3.96x [" in first and "] on tiny, 1.98x [" in first
    assert any(text.startswith("tiny-wide: compared to the same") for text in facts.sentences)


def test_text_is_compared_with_the_reference_of_the_same_model(plan, measured):
    requests = measured(tiny=4.0, tiny_wide=2.0)
    requests.loc[requests["model"].eq("tiny-wide"), "text"] = "what another model says"
    gate = next(g for g in concluded(plan, requests).gates if g.name == "same text")
    assert gate.outcome == "PASS"
    assert gate.sentence.endswith("(tiny 2a or tiny-wide 2a, cold pass)")
    wrong = requests["arm"].eq("tiny-wide 1p1d lmcache")
    requests.loc[wrong, "text"] = "what the first model says"
    gate = next(g for g in concluded(plan, requests).gates if g.name == "same text")
    assert (gate.outcome, gate.arms) == ("FAIL", ("tiny-wide 1p1d lmcache",))


def test_frames_have_a_column_model_and_one_table_has_all_side_by_side(plan, measured, tmp_path):
    requests = measured(tiny=4.0, tiny_wide=2.0)
    arms = tuple(ArmFacts(label=arm.label, short_model=arm.model) for arm in plan.arms)
    facts = replace(concluded(plan, requests), arms=arms, models=run_facts._models(plan))
    result = Result(run=facts, folder=tmp_path, frames={"requests": requests})
    assert result.models == ["tiny", "tiny-wide"]
    assert set(result.comparisons["model"]) == set(result.summary["model"]) == set(result.models)
    table = result.model_table().set_index(["arm", "baseline"])
    warm = table.loc[("1p1d lmcache, store-warm", "cold")]
    assert [cell.split("x")[0] for cell in warm] == ["3.96", "1.98"]
    assert "model" not in result.speedup("ttft")  # labels of arms begin with it
    alone = replace(facts, arms=(), models=())
    assert result.__class__(run=alone, folder=tmp_path).model_table().empty
