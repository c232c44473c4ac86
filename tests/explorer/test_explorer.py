"""The explorer without a browser: what it shows for what the browser says."""

import numpy as np
import pytest

from workbench.explorer.explorer import Explorer
from workbench.explorer.sources import source_of, what_is


@pytest.fixture
def explorer(recorded):
    return Explorer([source_of(recorded)])


def drawn_in_lines(explorer):
    return sum(np.isfinite(line.x).sum() for line in explorer.figure.data[2:])


def test_the_first_picture_has_everything_that_is_drawn(explorer):
    """A widget that is drawn after it was made may reach the browser empty or without symbols."""
    sent = explorer.figure.get_state()
    assert len(sent["_widget_data"]) == 2 + 19
    assert all({"symbol", "color"} <= line["marker"].keys() for line in sent["_widget_data"][2:])
    assert sent["_widget_layout"]["yaxis"]["title"]["text"].startswith("TTFT, ms")


def clicks(explorer, trace, points):
    """What the browser sends after a click."""
    tells(explorer, "plotly_click", [(trace, point) for point in points])


def tells(explorer, event, marks):
    """What the browser sends of points, each of a trace."""
    data = explorer.figure.data
    explorer.figure._js2py_pointsCallback = {
        "event_type": event,
        "points": {
            "trace_indexes": [trace for trace, _ in marks],
            "point_indexes": [point for _, point in marks],
            "xs": [data[trace].x[point] for trace, point in marks],
            "ys": [data[trace].y[point] for trace, point in marks],
        },
        "device_state": None,
        "selector": None,
    }


def brushes(explorer, panel, x, y):
    """What the browser sends after a brush: all boxes that it shows."""
    box = {"xref": f"x{panel}", "yref": f"y{panel}", "x0": x[0], "x1": x[1], "y0": y[1], "y1": y[0]}
    explorer.figure._js2py_relayout = {
        "relayout_data": {"selections": [box]},
        "source_view_id": "one",
    }


def test_it_begins_with_all_requests_and_lists_the_slowest(explorer, recorded):
    assert "All 171 requests are drawn." in explorer.note.value
    time, share, *lines = explorer.figure.data
    assert len(time.x) == len(share.x) == 171 and len(lines) == 19
    slowest = 1000 * recorded.requests["ttft_s"].max()
    assert explorer.found.options[0][0].startswith(f"{slowest:,.4g}  ")


def test_arms_passes_and_metric_are_chosen(explorer, recorded):
    explorer.passes.value = ("cold",)
    explorer.arms.value = ("2a", "3a")
    rows = recorded.requests.query("arm in ('2a', '3a') and `pass` == 'cold'")
    assert f"All {len(rows)} requests" in explorer.note.value
    explorer.metric.value = "E2E latency, ms"
    assert np.isclose(sorted(explorer.figure.data[0].y), sorted(1000 * rows["e2e_s"])).all()
    assert explorer.figure.layout.yaxis.title.text.startswith("E2E latency, ms")


def test_the_hover_text_tells_points_apart(explorer, recorded):
    points = explorer.figure.data[0]
    assert points.hovertemplate.startswith(
        "%{text}, round %{customdata[0]}, request %{customdata[1]}<br>TTFT, ms: "
    )
    numbers = {(text, *which) for text, which in zip(points.text, points.customdata, strict=True)}
    rows = recorded.requests
    arms, states = rows["arm"] + ", ", rows["pass"]
    assert numbers == set(zip(arms + states, rows["round"] + 1, rows["index"], strict=True))


def test_a_click_opens_the_request(explorer):
    clicks(explorer, 0, [7])
    name = explorer.sides[0].source.name(int(explorer.sides[0].drawn[7]))
    assert f"<h3>{name} (" in explorer.page.value


def test_the_list_and_the_search_open_requests_by_keyboard(explorer):
    explorer.find.value = "2"
    assert {label.rsplit(" ", 1)[1] for label, _ in explorer.found.options} == {"2"}
    explorer.found.index = 0
    assert "request 2 (" in explorer.page.value
    explorer.find.value = "no such request"
    assert explorer.found.options == ()
    assert "No match among these requests: no such request" in explorer.page.value


def test_a_brush_selects_all_rows_in_its_box_and_can_be_cleared(explorer, recorded):
    low, high = 60.0, 1000.0
    slow = np.flatnonzero(explorer.figure.data[0].y >= low)
    brushes(explorer, "", (-1.0, 1.0), (low, high))
    rows = recorded.requests[1000 * recorded.requests["ttft_s"] >= low]
    assert len(slow) == len(rows) > 0
    assert explorer.sides[0].brushed.sum() == len(rows)
    assert list(explorer.figure.data[1].selectedpoints) == list(slow)
    counts = rows.groupby(["arm", "pass"]).size()
    assert explorer.selection.value.count("</td></tr>") == len(counts)
    assert drawn_in_lines(explorer) == len(rows)
    explorer.clear.click()
    assert explorer.clear.disabled and explorer.selection.value == ""
    assert drawn_in_lines(explorer) == 171


def test_a_brush_of_the_cached_share_selects_the_rows_in_its_box(explorer):
    side = explorer.sides[0]
    brushes(explorer, 3, (90, 101), (0, 1e6))
    assert side.brushed.sum() == (side.share > 90).sum() > 0
    assert "Selection, TTFT, ms" in explorer.selection.value and not explorer.clear.disabled


def test_a_brush_of_the_distribution_selects_the_rows_in_its_box(explorer):
    side = explorer.sides[0]
    brushes(explorer, 2, (0, 1e6), (0, 50))
    sizes = np.bincount(side.series)
    assert list(np.bincount(side.series[side.brushed])) == list(sizes // 2)
    assert drawn_in_lines(explorer) == side.brushed.sum()


def test_the_browser_redraws_once_for_the_points_of_a_brush(explorer):
    sent = []
    for name in ("_py2js_restyle", "_py2js_update"):
        explorer.figure.observe(lambda change: change["new"] and sent.append(change["new"]), name)
    tells(explorer, "plotly_selected", [(trace, 0) for trace in range(2, 21)])
    assert len(sent) == 1
    assert all(line.selectedpoints == (0,) for line in explorer.figure.data[2:])


def test_where_the_widget_is_gone_its_text_says_what_to_do(explorer):
    assert "Run this cell again" in explorer._repr_mimebundle_()["text/plain"]


def test_a_brush_without_a_point_says_so_and_can_be_cleared(explorer):
    brushes(explorer, 3, (30, 31), (1e6, 2e6))
    assert "No requests in this box." in explorer.selection.value
    assert list(explorer.figure.data[0].selectedpoints) == []
    explorer.clear.click()
    points = explorer.figure.data[0]
    assert explorer.selection.value == "" and points.selectedpoints is None
    assert points.unselected.marker.opacity == points.marker.opacity


def test_two_results_stand_side_by_side(recorded):
    both = Explorer([source_of(one) for one in what_is(recorded, recorded.folder)])
    assert "All 342 requests are drawn. In a PD split, the" in both.note.value
    assert both.note.value.count("PD split") == 1  # true of both
    assert len(both.figure.data) == 2 * (2 + 19)
    clicks(both, both.figure.data.index(both.figure.data[21]), [0])
    assert "<h3>" in both.page.value
    assert both.figure.layout.yaxis2.matches == "y"


def test_lookups_of_a_log_are_explored_likewise(log):
    explorer = Explorer([source_of(*what_is(log, None))])
    assert "All 12 lookups are drawn." in explorer.note.value
    explorer.find.value = "1"
    explorer.found.index = 0
    assert "Token sources" in explorer.page.value and "lookup 2: r-1" in explorer.found.label
    assert "<td>retrieval, ms</td>" in explorer.page.value
    hidden = [one.layout.display == "none" for one in (explorer.arms, explorer.passes)]
    assert hidden == [True, False]  # one engine; some hits were not retrieved
    assert explorer.passes.description == "Loading"
    assert explorer.passes.value == ("hit without a retrieval", "retrieved")


def test_a_log_without_lookups_has_an_empty_figure(tmp_path):
    path = tmp_path / "lmcache.log"
    path.write_text("INFO started\n")
    assert "No row has a value." in Explorer([source_of(*what_is(path, None))]).note.value


def test_many_points_are_a_sample_and_say_so(recorded):
    from dataclasses import replace

    source = source_of(recorded)
    times = 600
    many = replace(
        source,
        rows=source.rows.loc[source.rows.index.repeat(times)].reset_index(drop=True),
        metrics={name: np.repeat(values, times) for name, values in source.metrics.items()},
        numbered={name: np.repeat(values, times) for name, values in source.numbered.items()},
        name=str,
    )
    explorer = Explorer([many])
    assert "of 102,600 requests are drawn: a random sample" in explorer.note.value
    drawn = len(explorer.figure.data[0].x)
    assert 9_000 < drawn <= 10_000 and explorer.figure.data[0].type == "scattergl"
    explorer.figure.plotly_relayout({"xaxis.range[0]": 0.1, "xaxis.range[1]": 0.2})
    assert explorer.figure.data[0].x.min() >= 0.1
