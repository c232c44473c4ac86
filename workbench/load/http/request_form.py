"""How a server wants its requests: fields that it refuses, prompts as text, fields of the user's.

A server is asked once, before anything is measured (`experiment.run.front_door`); every request
of a run then has the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OPTIONAL_FIELDS", "RETURN_IDS", "USUAL_FORM", "RequestForm"]

RETURN_IDS = "return_token_ids"
"""Asked for by turns of a conversation alone (`Request.return_ids`)."""

OPTIONAL_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 0},
    "stream_options": {"stream_options": {"include_usage": True}},
    "continuous_usage_stats": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    },
    "ignore_eos": {"ignore_eos": True},
}
"""What we ask for beyond the OpenAI API's first version, by name; the later of one field holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """The form of every request of a run."""

    left_out: frozenset[str] = frozenset()
    """Optional fields that the server refuses."""
    prompts_as_text: bool = False
    """The server takes no token ids."""
    first_token_from_prefill: bool = False
    """The proxy takes the first token from the prefill instance and puts it behind the prompt: the
    decode instance, whose usage we get, counts one prompt token more and one output token less."""
    extra_body: str = ""
    """Fields of the user's own as the text of a JSON object, merged into each body."""

    @property
    def fields(self) -> dict[str, Any]:
        """What each body has beside model, prompt and length."""
        body: dict[str, Any] = {}
        for name, asked in OPTIONAL_FIELDS.items():
            if name not in self.left_out:
                body |= asked
        return body | (json.loads(self.extra_body) if self.extra_body else {})


USUAL_FORM = RequestForm()
"""What vLLM takes: all that we ask for."""
