"""Attached servers that are not vLLM's own: what they refuse is found out once, and told."""

import pytest

from tests.load.words import Words
from workbench.errors import DeploymentError, ParameterError
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.offered_load import traffic
from workbench.experiment.run.run import run
from workbench.params.notebooks import check_params


@pytest.fixture
def tokenizer(monkeypatch):
    """What a folder of a tokenizer gives; it counts one special token before each text."""
    words = Words()
    monkeypatch.setattr(traffic, "model_tokenizer", lambda name: words)
    return words


async def measured(planned):
    """The rows of a run, and its doubts in one text."""
    result = await run(planned, echo=lambda _: None)
    return result.frames["requests"], "\n".join(result.facts["doubts"])


def gate(result, name):
    return next(g for g in result.facts["gates"] if g["name"] == name)


async def test_vllm_is_asked_for_everything_after_one_probe(attached, vllm):
    rows, doubts = await measured(attached())
    assert vllm.probes == 1
    body = vllm.bodies[-1]
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "refuses" not in doubts
    assert rows["error"].tolist() == [""] * 4


@pytest.mark.parametrize(("named", "measured_model"), [("sql-lora", "sql-lora"), ("", "base")])
async def test_one_model_is_asked_for_and_stands_in_the_result(
    named, measured_model, attached, vllm
):
    vllm.models = ["base", "sql-lora"]
    result = await run(attached(model=named), echo=lambda _: None)
    assert {body["model"] for body in vllm.bodies} == {measured_model}
    assert result.facts["arms"][0]["model"] == measured_model
    told = "The server lists 2 models; the first one, 'base', was measured"
    assert (told in "".join(result.facts["doubts"])) == (not named)


async def test_a_live_analysis_asks_like_a_sweep(vllm, tokenizer, tmp_path):
    vllm.text_only, vllm.refuses, vllm.models = tokenizer, {"ignore_eos"}, ["base", "sql-lora"]
    given = {"engine": "attach", "base_url": f"{vllm.url}/v1/", "decode_urls": [vllm.url]}
    given |= {"model": "sql-lora", "tokenizer": "/models/theirs", "extra_body": {"top_k": 1}}
    short = {"prompt_tokens": [100, 200], "requests": 1, "rounds": 1, "output_dir": str(tmp_path)}
    planned = plan(check_params("lmcache_hit_analysis", given | short))
    rows, doubts = await measured(planned)
    assert rows["usage_prompt_tokens"].tolist() == [100, 200] * 2
    assert vllm.bodies[-1]["model"] == "sql-lora"
    assert vllm.bodies[-1]["top_k"] == 1
    assert "ignore_eos" not in vllm.bodies[-1]
    assert "sent as text" in doubts


@pytest.mark.parametrize(
    ("refused", "left", "sentence"),
    [
        ("temperature", {"stream_options", "ignore_eos"}, "output is sampled"),
        (
            "ignore_eos",
            {"stream_options"},
            "The server rejects ignore_eos, so output lengths may differ",
        ),
        ("continuous_usage_stats", {"stream_options", "ignore_eos"}, "tokens per chunk are known"),
        ("stream_options", {"ignore_eos"}, "token counts are unknown and TPOT is missing"),
        ("ignore_eos stream_options temperature", set(), "output is sampled"),
    ],
)
async def test_a_refused_field_is_left_out_and_told(refused, left, sentence, attached, vllm):
    vllm.refuses = set(refused.split())
    rows, doubts = await measured(attached())
    assert rows["error"].tolist() == [""] * 4
    assert {"ignore_eos", "stream_options"} & vllm.bodies[-1].keys() == left
    assert sentence in doubts
    assert doubts.count("rejects") == len(vllm.refuses)
    assert (rows["output_tokens"] == (-1 if "stream_options" in vllm.refuses else 4)).all()


async def test_a_server_is_asked_once_and_not_in_every_round(attached, vllm):
    vllm.refuses = {"ignore_eos"}
    await measured(attached(rounds=3))
    one_run = vllm.probes
    assert 2 <= one_run <= 7
    await measured(attached(rounds=1))
    assert vllm.probes == 2 * one_run


async def test_a_server_that_refuses_the_plainest_request_fails_with_its_own_words(attached, vllm):
    vllm.refuses = {"max_tokens"}
    with pytest.raises(DeploymentError, match=r"http_400 Unrecognized .* max_tokens"):
        await run(attached(), echo=lambda _: None)


async def test_the_field_of_a_user_reaches_every_request(attached, vllm):
    await measured(attached(extra_body='{"top_k": 1, "cache_salt": "a"}'))
    assert all((body["top_k"], body["cache_salt"]) == (1, "a") for body in vllm.bodies)
    assert len(vllm.bodies) == 5


async def test_the_first_token_from_prefill_is_counted_as_the_clients_token(attached, vllm):
    vllm.first_token_from_prefill = True
    result = await run(attached(), echo=lambda _: None)
    rows = result.frames["requests"]
    assert rows["usage_prompt_tokens"].tolist() == rows["prompt_tokens"].tolist() == [500] * 4
    assert rows["output_tokens"].tolist() == [4] * 4
    assert rows["tpot_s"].notna().all()
    assert gate(result, "nothing impossible")["outcome"] == "PASS"
    doubts = "\n".join(result.facts["doubts"])
    assert "decode counts it as a prompt token. Both counts are corrected." in doubts
    assert "The first token comes from the prefill instance" in doubts


async def test_prompts_go_as_text_where_token_ids_are_refused(attached, vllm, tokenizer):
    vllm.text_only = tokenizer
    result = await run(attached(tokenizer="/models/theirs"), echo=lambda _: None)
    rows = result.frames["requests"]
    assert rows["error"].tolist() == [""] * 4
    # As long as asked for, the tokenizer's own first token included, and the server agrees.
    assert rows["usage_prompt_tokens"].tolist() == rows["prompt_tokens"].tolist() == [500] * 4
    assert (rows.loc[rows["pass"] == "engine-warm", "cached_tokens"] > 350).all()
    doubts = "\n".join(result.facts["doubts"])
    assert "The server rejects token ids, so prompts were sent as text" in doubts
    assert "differ from the requested length" not in doubts
    assert gate(result, "nothing impossible")["outcome"] == "PASS"


async def test_text_and_a_first_token_from_prefill_as_lmcaches_proxy_has_them(
    attached, vllm, tokenizer
):
    vllm.text_only, vllm.first_token_from_prefill = tokenizer, True
    rows, doubts = await measured(attached(tokenizer="/models/theirs"))
    assert rows["usage_prompt_tokens"].tolist() == [500] * 4
    assert rows["output_tokens"].tolist() == [4] * 4
    assert "first token from prefill" in doubts
    assert "sent as text" in doubts


async def test_text_needs_a_tokenizer_and_says_so(attached, vllm):
    vllm.text_only = Words()
    with pytest.raises(ParameterError) as refused:
        await run(attached(), echo=lambda _: None)
    assert "accepts only text prompts, no token ids (http_500" in str(refused.value)
    assert "example: -p tokenizer /models/" in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_another_tokenizer_than_the_servers_is_found_out(attached, vllm, tokenizer):
    class TwoFirst(Words):
        def completion(self, text):
            return [1, *super().completion(text)]

    vllm.text_only = TwoFirst()
    result = await run(attached(tokenizer="/models/another"), echo=lambda _: None)
    assert gate(result, "nothing impossible")["outcome"] == "FAIL"
    doubts = "\n".join(result.facts["doubts"])
    assert "The server counts 65 tokens in a short prompt but the tokenizer counts 64" in doubts


async def test_a_conversation_cannot_be_text(attached, vllm, tokenizer):
    vllm.text_only = tokenizer
    planned = attached(workload="multi_turn_conversation", tokenizer="/models/theirs", requests=14)
    with pytest.raises(ParameterError, match="needs a single-turn workload"):
        await run(planned, echo=lambda _: None)


async def test_a_conversation_goes_on_where_answers_have_no_ids(attached, vllm):
    vllm.refuses = {"return_token_ids"}
    options = {"requests": 14, "prompt_tokens": 1500, "workload": "multi_turn_conversation"}
    rows, doubts = await measured(attached(**options))
    assert rows["error"].eq("").all()
    assert "turns contain made-up responses" in doubts
    assert doubts.count("rejects") == 1


async def test_a_server_that_is_not_reached_is_not_asked_in_other_ways(attached, vllm):
    """It lists its model, and every request fails: the records say how, and no form is tried."""
    vllm.busy = True
    with pytest.raises(DeploymentError, match="all 4 requests failed; first error: http_503"):
        await run(attached(), echo=lambda _: None)
    assert vllm.probes == 1
