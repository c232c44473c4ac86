"""Saves seconds of CPU when nbformat is imported: grammars of URLs that nothing here uses."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_NAME = "rfc3987_syntax"


def spare_grammars() -> None:
    """Let jsonschema, which papermill and plotly import by nbformat, compile them at first use.

    jsonschema takes one function of `rfc3987_syntax`, whose import compiles 38 grammars (measured
    2026-11-30 on a busy machine: `import papermill` 2.0 s of CPU, 0.5 s without them).
    """
    spec = find_spec(_NAME) if _NAME not in sys.modules else None
    if spec is None or "jsonschema" in sys.modules:
        return
    lazy: Any = ModuleType(_NAME)

    def is_valid_syntax(*arguments: Any) -> Any:
        if sys.modules.get(_NAME) is lazy:
            del sys.modules[_NAME]
        return importlib.import_module(_NAME).is_valid_syntax(*arguments)

    lazy.__spec__, lazy.is_valid_syntax = spec, is_valid_syntax
    sys.modules[_NAME] = lazy
