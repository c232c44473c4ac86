"""Find the reason for a server's end in its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\(.*?\)\s+|^(?:ERROR|CRITICAL) [ \d:.-]*\[[^\]]*\]\s*")
_ERROR_LINE = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception)\b.*|^ERROR:\s+\[Errno.*")


def lines(log: Path) -> list[str]:
    """The lines of a log without colours and vLLM's prefixes; empty if there is none."""
    text = log.read_text(errors="replace") if log.exists() else ""
    plain = (_ANSI.sub("", line) for line in text.splitlines())
    return [_PREFIX.sub("", _PREFIX.sub("", line)).rstrip() for line in plain]


def fatal(log_lines: Iterable[str], texts: Iterable[str] = ()) -> str:
    """A line after which a server never becomes ready, though it may keep running; or empty.

    Such a line has one of `texts`, or is the error of a failed engine core: under fork an API
    server takes 30 s to notice that.
    """
    core_failed = False
    for line in log_lines:
        if any(text in line for text in texts) or (core_failed and _ERROR_LINE.match(line)):
            return line
        core_failed = core_failed or "EngineCore failed to start" in line
    return ""


def reason(log_lines: Sequence[str], texts: Iterable[str] = (), *, otherwise: str = "") -> str:
    """The log line that best explains why a server ended, at most 400 characters.

    If the log has no error it is `otherwise`, or the last line.
    """
    said = [line for line in log_lines if line]
    errors = [line for line in said if _ERROR_LINE.match(line)]
    # vLLM ends with a general line that points to the root cause above it.
    telling = [line for line in errors if "root cause" not in line] or errors
    last = (telling or [otherwise or (said or ["its log is empty"])[-1]])[-1]
    return (fatal(said, texts) or last)[:400]
