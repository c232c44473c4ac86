from __future__ import annotations

import pytest

from workbench.load.http.refusal import error_message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no room", "code": 503}}', "no room"),
        (b'{"error": "no room"}', "no room"),
        (b'{"object": "error", "message": "no room"}', "no room"),
        (b'{"detail": "no room"}', "no room"),
        (b" <title>502</title><style>h1{}</style><h1>no\n room</h1> ", "502 no room"),
        (b'{"error": [5]}', "[5]"),
        (b'{"error": {"message": {"a": 1}}}', "{'a': 1}"),
        (b"\xff" * 5000, "\ufffd" * 500),
        (b"[1]", "[1]"),
        (b"", ""),
    ],
)
def test_error_messages_of_several_servers(body: bytes, message: str) -> None:
    assert error_message(body) == message
