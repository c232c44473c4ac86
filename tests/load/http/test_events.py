from __future__ import annotations

import pytest

from workbench.load.http.events import events_of


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [(9, b" a", False), (18, b" b", False)]),
        (b"data: a\r\n\r\ndata: b\r\r", [(11, b" a", False), (20, b" b", False)]),
        (b"data: a\n\ndata: b", [(9, b" a", False), (16, b" b", False)]),
        (b"\xef\xbb\xbfdata: a\n\n", [(12, b" a", False)]),
        (b": waiting\n\nid: 7\ndata: a\ndata: b\n\n", [(34, b" a\n b", False)]),
        (b"event: error\ndata: no room\n\n", [(28, b" no room", True)]),
        (b"", []),
    ],
)
def test_events_end_behind_their_blank_line(
    body: bytes, events: list[tuple[int, bytes, bool]]
) -> None:
    assert list(events_of(body, 0)) == events
