import re
from dataclasses import replace

import pytest

from workbench.explorer.one_request import naming_lines, request_page


@pytest.fixture
def key(recorded):
    return recorded.requests.loc[4, ["arm", "round", "pass", "index", "request_id"]]


def test_a_page_has_the_waterfall_the_sources_and_the_stamps(recorded, key):
    page = request_page(recorded, key)
    row = recorded.requests.loc[4]
    waterfall = page.split("</section>")[0]
    parts = [float(ms) for ms in re.findall(r"([\d.]+) ms</td>", waterfall)]
    assert len(parts) >= 8 and abs(sum(parts) - 1000 * row["ttft_s"]) < 0.1
    cached, computed = (int(n.replace(",", "")) for n in re.findall(r">([\d,]+) tokens<", page))
    assert (cached, cached + computed) == (row["cached_tokens"], row["prompt_tokens"])
    assert f"+{1000 * row['ttft_s']:,.2f} ms</td><td>first token at the client" in page
    assert "32 chunks" in page and "Simulated servers write no log" in page


def test_an_aggregated_request_has_no_words_of_a_split_one(recorded):
    keys = ["arm", "round", "pass", "index", "request_id"]
    rows = recorded.requests
    page, split = (
        request_page(recorded, rows.loc[rows["arm"] == arm, keys].iloc[0])
        for arm in ("3a", "1p2d lmcache")
    )
    assert ">API server</td>" in page and "<td>request sent by the proxy</td>" in page
    assert "Instance: http" in page and "Instances: prefill http" in split
    for role in ("prefill", "decode"):
        assert role not in page and f"<td>{role} request sent by the proxy</td>" in split


def test_lines_of_the_launch_that_name_the_request_are_shown(recorded, key, tmp_path):
    logs = tmp_path / "logs" / f"round-{key['round']}" / key["arm"].replace(" ", "-")
    logs.mkdir(parents=True)
    mine, id = "took <2> steps", key["request_id"]
    (logs / "decode-0.log").write_text(f"start\nreq cmpl-{id}-0 {mine}\n{id}1 other\n")
    frames = {"requests": recorded.requests, "legs": recorded.legs}
    page = request_page(replace(recorded, folder=tmp_path, frames=frames), key)
    assert "decode-0.log: req cmpl-" in page and "took &lt;2&gt; steps" in page
    assert "other" not in page


def test_a_name_within_a_longer_number_is_another(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("\x1b[36mat\x1b[0m a-1\na-12\nxa-1\nb a-1 a-1 end\na-1-0")
    assert naming_lines(log, "a-1") == ["at a-1", "b a-1 a-1 end", "a-1-0"]
    (tmp_path / "empty.log").touch()
    assert naming_lines(tmp_path / "empty.log", "a") == naming_lines(log, "") == []


def test_a_run_without_a_proxy_has_a_page_that_says_what_is_missing(recorded, key, tmp_path):
    alone = replace(recorded, folder=tmp_path, frames={"requests": recorded.requests})
    page = request_page(alone, key)
    assert "Not split into parts" in page and "received by the proxy" not in page
