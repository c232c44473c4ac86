import json
import re

import pandas as pd
from bs4 import BeautifulSoup

from tests.experiment.between.recorded import quiet, recorded
from workbench.cli import main


def test_the_page_has_settings_ratios_and_the_command(tmp_path, capsys):
    page, svg = tmp_path / "compare.html", tmp_path / "ratios.svg"
    base, slow = (str(quiet(name, tmp_path)) for name in ("base", "slow"))
    words = ["compare", base, slow, "--page", str(page), "--figure", str(svg)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "1 setting differs: fault (none and slow_instance)."
    assert "  fault: none and slow_instance\n" in printed
    assert re.search(
        r"TPOT, geometric mean +1p1d nixl +cold .* 0\.\d+x \[0\.\d+, 0\.\d+\] +slower", printed
    )
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert soup.h1.get_text() == "1 setting differs: fault (none and slow_instance)"
    rows = [[cell.get_text() for cell in row("td")] for row in soup.select("tbody tr")]
    tpot = next(row for row in rows if row[:2] == ["TPOT", "1p1d nixl, cold"])
    assert tpot[5] == "slower"
    settings = [[cell.get_text() for cell in row(["th", "td"])] for row in soup.select(".facts tr")]
    assert ["fault", "parameter", "none", "slow_instance"] in settings
    assert soup.find(id="command").get_text() == f"workbench {' '.join(words)}"
    assert svg.read_text().startswith("<svg")
    assert soup.select_one(".band")  # simulated


def test_what_a_gate_takes_away_is_struck_out_and_not_drawn(tmp_path):
    page = tmp_path / "compare.html"
    void = quiet("void", tmp_path)
    assert main(["compare", str(recorded("base")), str(void), "--page", str(page)]) == 0
    soup = BeautifulSoup(page.read_text(), "html.parser")
    rows = soup.select("table")[0].select("tbody tr")
    assert len(rows) == 8
    assert all(row.s and "KV transfers failed" in row.get_text() for row in rows)
    assert "no arm and pass has a valid number" in soup.select("figure")[0].get_text()


def test_runs_with_nothing_in_common_say_so_instead_of_an_empty_table(tmp_path, capsys):
    other = quiet("base", tmp_path)
    facts = json.loads((other / "result.json").read_text())
    for arm in facts["arms"]:
        arm.update(label="2a", topology="2a")
    facts["arms"].append({**facts["arms"][0], "label": "4a", "topology": "4a"})
    (other / "result.json").write_text(json.dumps(facts))
    requests = pd.read_parquet(other / "requests.parquet").assign(arm="2a", topology="2a")
    requests.to_parquet(other / "requests.parquet")
    page = tmp_path / "compare.html"
    assert main(["compare", str(recorded("again")), str(other), "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "base vs again\nnothing in common\n" in said
    assert "Nothing was compared: base and again have no arm and pass in common." in said
    assert "Empty DataFrame" not in said
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert "The runs have no arm and pass in common." in soup.get_text()
    assert all(table.select("tbody tr") for table in soup.select("table"))
