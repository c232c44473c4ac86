"""Asks vLLM whether it accepts arguments, before anything starts. Run in the engine's interpreter.

    python -m workbench.serve.argument_check '["--max-num-batched-tokens", "2048"]'

prints one line of JSON: `error`, empty if they are accepted, and the `options` that it knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from workbench.errors import PlanError
from workbench.hardware.interpreter import Interpreter


def check_arguments(name: str, args: Sequence[str], engine: Interpreter) -> None:
    """Refuse arguments that vLLM does not accept. Raises PlanError with vLLM's own sentence.

    Importing vLLM takes about 10 s; the answer is kept. Without vLLM nothing is checked: the start
    says then what is missing.
    """
    known = engine.versions.get("vllm")
    if not args or not known:
        return
    # If it cannot be asked, its start will say why.
    answer = engine.ask(__name__, json.dumps(list(args)))
    if answer and answer["error"]:
        unknown = next((w for w in args if w.startswith("--") and w in answer["error"]), "")
        flag = unknown.partition("=")[0].replace("_", "-")
        said = answer["error"]
        if near := get_close_matches(flag, answer["options"], n=1):
            said += f"; did you mean {near[0]}?"
        raise PlanError(f"{name} must be arguments that vLLM {known} accepts: {said}")


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
