"""The page of predicted splits, and what the command prints."""

import pytest

from tests.whatif.known import known_profile
from workbench import cli
from workbench.whatif import highest_rates


@pytest.fixture
def ran(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(highest_rates, "DRAWS", 1)
    file = known_profile(largest_batch=256).write(tmp_path)

    def run(*words):
        load = ("-p", "prompt_tokens", "4000", "-p", "requests", "40")
        status = cli.main(["predict", str(file), *load, *words])
        return (status, *capsys.readouterr())

    return run


def test_splits_are_printed_and_written_as_page_svg_and_png(ran, tmp_path):
    limits = ("-p", "ttft_limit_ms", "300", "-p", "tpot_limit_ms", "11.5")
    status, out, _ = ran("--splits", "2", *limits, "-p", "gpu_hour_price", "4 USD")
    assert status == 0 and out.startswith("2 instances: ")
    assert "No held-out run has checked" in out and "USD per million output tokens" in out
    page = (tmp_path / "splits.html").read_text()
    assert out.splitlines()[0] in page and "Simulated." in page
    assert "workbench predict" in page and page.count("<tr>") == 3
    for said in (
        "40 requests (short), prompts of 4,000 tokens, 32 output tokens in each simulation",
        "Poisson arrivals. Limits: TTFT at most 300 ms and TPOT at most 11.5 ms for 90 % of",
    ):
        assert said in out and said in page
    assert (tmp_path / "splits.svg").read_text().startswith("<svg")
    assert (tmp_path / "splits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--splits", "2"), "--splits needs ttft_limit_ms or tpot_limit_ms"),
        (("--page", "a.html"), "--page needs --splits"),
        (("--splits", "2", "--measured", "RUN"), "--measured=RUN does not apply to --splits"),
        (("--splits", "2", "-p", "ttft_limit_ms", "300", "--page", "/none/a.html"),
         "--page must be a file in an existing folder, got '/none/a.html'"),
        (("--splits", "2", "-p", "ttft_limit_ms", "300", "--page", "a.svg"),
         "--page must be a file that ends in .html, got 'a.svg' (example: --page splits.html)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(ran, words, says):
    status, out, err = ran(*words)
    assert status == 2 and says in err and not out
