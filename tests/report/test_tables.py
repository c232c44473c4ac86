import re

import pandas as pd

from workbench.report.tables import table


def test_a_table_has_no_index_three_digits_and_headers_in_words() -> None:
    shown = table(pd.DataFrame({"baseline_arm": ["1a"], "ratio": [18.12345]}, index=[7]))
    assert shown is not None
    html = shown.to_html()
    assert ">18.1<" in html and ">7<" not in html
    assert ">baseline arm<" in html


def test_a_table_without_rows_is_no_table() -> None:
    assert table(pd.DataFrame({"ratio": []})) is None


def test_what_a_failed_gate_takes_is_struck_in_its_rows_and_said_above() -> None:
    frame = pd.DataFrame({"arm": "1a", "pass": ["cold", "store-warm"], "ttft": ["9 ms", "2 ms"]})
    frame.attrs |= {"failed_gates": ["store-warm was store-warm"], "shows": ("times",)}
    shown = table(frame)
    assert shown is not None
    html = shown.to_html()
    assert "Not valid: store-warm state was not reached.</caption>" in html
    assert re.findall(r"#T_\w+_row(\d)_col(\d) {\s*text-decoration: line-through", html) == [
        ("1", "2")
    ]


def test_a_busy_machine_strikes_no_table() -> None:
    frame = pd.DataFrame({"arm": ["1a"], "pass": ["cold"], "ttft": ["9 ms"]})
    frame.attrs |= {"failed_gates": ["client kept up"], "shows": ("times",)}
    rough = table(frame)
    frame.attrs["shows"] = ("counts",)
    counted = table(frame)
    assert rough is not None and counted is not None
    assert "Rough: client did not keep up." in rough.to_html()
    assert "line-through" not in rough.to_html() and "caption" not in counted.to_html()


def test_a_gate_of_one_arm_strikes_its_rows_and_comparisons_with_it() -> None:
    frame = pd.DataFrame({"arm": ["1p1d", "1p1d", "2a"], "baseline_arm": ["2a", "5a", "5a"]})
    frame["ratio"] = [1.0, 2.0, 3.0]
    frame.attrs |= {"failed_gates": {"KV moved": ("2a",)}, "shows": ("ratios",)}
    shown = table(frame)
    assert shown is not None
    assert "Not valid: KV was not transferred.</caption>" in shown.to_html()
    struck = re.findall(r"#T_\w+_row(\d)_col2[ ,{]", shown.to_html().partition("</style>")[0])
    assert struck == ["0", "2"]


def test_a_gate_of_one_arm_strikes_its_column_where_each_arm_has_one() -> None:
    frame = pd.DataFrame({"pass": ["cold"], "1p1d": ["9 ms"], "2a": ["2 ms"]})
    frame.attrs |= {"failed_gates": {"KV moved": ("1p1d",)}, "shows": ("times",)}
    shown = table(frame)
    assert shown is not None
    assert re.findall(r"#T_\w+_row0_col(\d) {\s*text-dec", shown.to_html()) == ["1"]
