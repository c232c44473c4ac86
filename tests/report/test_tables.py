import pandas as pd

from workbench.report.tables import table


def test_a_table_has_no_index_and_three_decimals() -> None:
    shown = table(pd.DataFrame({"ratio": [18.12345]}, index=[7]))
    assert shown is not None
    assert "18.123" in shown.to_html() and ">7<" not in shown.to_html()


def test_a_table_without_rows_is_no_table() -> None:
    assert table(pd.DataFrame({"ratio": []})) is None
