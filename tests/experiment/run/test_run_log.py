from workbench.experiment.run.run_log import Log


def test_a_doubt_is_noted_once():
    log = Log()
    log.doubt("few rounds")
    log.doubt("few rounds")
    assert log.doubts == ["few rounds"]


def test_what_was_not_measured_is_an_empty_table_with_columns():
    rows = Log().frame("requests")
    assert len(rows) == 0
    assert "error" in rows.columns
