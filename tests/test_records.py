from dataclasses import fields
from math import isnan

import pandas as pd

from workbench.records import LegRecord, RequestRecord, to_frame


def record(**given) -> RequestRecord:
    facts = {"index": 0, "request_id": "short-0", "scheduled_s": 10.0}
    sizes = {"prompt_tokens": 1024, "ideal_reuse_tokens": 0, "max_tokens": 32}
    return RequestRecord(**facts | sizes | given)


def test_what_has_not_happened_is_nan_or_minus_one_and_never_zero():
    untouched = record()
    assert isnan(untouched.sent_s) and isnan(untouched.head_s) and isnan(untouched.stream_end_s)
    assert untouched.output_tokens == untouched.cached_tokens == untouched.usage_prompt_tokens == -1
    leg = LegRecord(request_id="short-0", index=0)
    assert all(isnan(getattr(leg, f.name)) for f in fields(leg) if f.name.endswith("_s"))


def test_a_frame_has_a_row_for_each_record_behind_its_constants():
    rows = to_frame([record(), record(index=1, error="reset")], arm="5a", round=2)
    assert list(rows.columns[:4]) == ["arm", "round", "index", "request_id"]
    assert rows["round"].tolist() == [2, 2]
    assert rows["error"].tolist() == ["", "reset"]


def test_legs_have_columns_of_their_own():
    rows = to_frame([LegRecord(request_id="short-0", index=0)], arm="1p4d")
    assert {"arm", "prefill_instance", "decode_head_s"} <= set(rows.columns)


def test_no_record_is_a_frame_with_all_columns_and_no_row():
    rows = to_frame([], arm="5a")
    assert len(rows) == 0
    assert list(rows.columns) == list(to_frame([record()], arm="5a").columns)


def test_rows_survive_parquet(tmp_path):
    rows = to_frame([record(chunk_s=(1.0, 2.0), chunk_tokens=(1, 3)), record(index=1)])
    rows.to_parquet(tmp_path / "requests.parquet")
    back = pd.read_parquet(tmp_path / "requests.parquet")
    assert [list(stamps) for stamps in back["chunk_s"]] == [[1.0, 2.0], []]
    assert back["sent_s"].isna().all()
