"""Asks vLLM what it has and accepts, before anything starts. Run in the engine's interpreter.

    python -m workbench.serve.checks.argument_check '{"given": ["--block-size", "64"]}'

prints one line of JSON: `error`, empty if they are accepted; `wrong`, the word that it means, if it
is one; the `options` that vLLM knows; the module of its API `server`; and what it `read`, see
`Drafting`. Importing vLLM takes about 10 s; answers are kept.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from workbench.errors import PlanError
from workbench.hardware.interpreter import Interpreter
from workbench.params.engine_args import OURS
from workbench.serve.vllm import (
    MAY_LACK,
    PARSERS,
    SERVERS,
    Abilities,
    Drafting,
    EngineSettings,
    first_of,
    instance_argv,
    instance_env,
)
from workbench.topology import Role

_HELP_S = 60.0
_LONGEST_ERROR = 20
"""Words of vLLM's sentence that are shown."""


def abilities(engine: Interpreter) -> Abilities:
    """What vLLM has; what the tested version has if there is no vLLM or it cannot be asked."""
    known = engine.versions.get("vllm", "")
    answer = engine.ask(__name__, "{}") if known else None
    if not answer:
        return Abilities()
    lacks = tuple(option for option in MAY_LACK if option not in answer["options"])
    return Abilities(version=known, server=answer["server"], lacks=lacks)


def check_arguments(settings: EngineSettings, role: Role, *, tp: int = 1) -> Drafting:
    """Refuse arguments that vLLM does not accept. Raises PlanError with vLLM's own sentence.

    vLLM parses them and makes the configuration of an instance, as at its start, so contradictions
    are found too. Returns what it read. Without vLLM nothing is checked: the start says then what
    is missing.
    """
    engine, args = settings.interpreter, settings.args_of(role)
    known = engine.versions.get("vllm")
    if not args or not known:
        return Drafting()
    plain = settings.without_arguments()
    env = instance_env("cpu", offline=settings.local) if settings.platform == "cpu" else {}
    question = {
        "own": instance_argv(plain, role=role, port=1, tp=tp),
        "given": args,
        "env": env | dict(settings.extra_env),
    }
    answer = engine.ask(__name__, json.dumps(question))
    if answer is None:
        return Drafting()  # it cannot be asked; its start will say why
    if answer["error"]:
        names = " and ".join(["engine_args", f"{role}_args"][: 1 + (role in settings.role_args)])
        said = f"{names} must be arguments that vLLM {known} accepts: "
        raise PlanError(said + _with_way_out(answer, args))
    return Drafting(**answer["read"])


def _with_way_out(answer: dict[str, Any], args: Sequence[str]) -> str:
    """vLLM's sentence, and the nearest word that it knows or what to change."""
    error, wrong = answer["error"], answer["wrong"]
    words = error.split()
    said = " ".join(words[:_LONGEST_ERROR]) + " ..." * (len(words) > _LONGEST_ERROR)
    allowed = answer["options"] if wrong.startswith("-") else re.findall(r"'([^']+)'", error)
    if near := get_close_matches(wrong.replace("_", "-"), allowed, n=1) if wrong else []:
        return f"{said}; did you mean {near[0]!r}?"
    flags = [word.partition("=")[0] for word in args if word.startswith("-")]
    ways = [f for f in flags if f in error or f.lstrip("-").replace("-", "_") in error]
    ours = {flag.lstrip("-").replace("-", "_"): name for flag, name in OURS.items() if name}
    ways += [f"-p {name}" for field, name in ours.items() if field in error.split()]
    change = f"change {' or '.join(dict.fromkeys(ways))}" if ways else "leave it out"
    return f"{said}; {change} (example: -p engine_args '--max-num-seqs 64')"


def check_store_arguments(args: Sequence[str], program: Sequence[str], engine: Interpreter) -> None:
    """Refuse arguments that the help of a store's server does not name. Raises PlanError."""
    known = engine.ask(__name__, json.dumps({"program": program})) or []
    for flag in (word.partition("=")[0] for word in args if word.startswith("-")):
        name = flag.lstrip("-").replace("_", "-")
        if known and not any(option.startswith(name.removeprefix("no")) for option in known):
            near = get_close_matches(name, known, n=1)
            dashes, joint = ("--", "-") if "-m" in program else ("-", "_")
            way = f"did you mean {dashes + near[0].replace('-', joint)!r}?" if near else ""
            raise PlanError(
                f"store_args must be arguments of the store's server, got {flag}; "
                + (way or "leave it out (example: -p store_args '--max-workers 4')")
            )


def _options(program: Sequence[str]) -> list[str]:
    """The options that a program's help names, without their dashes."""
    told = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=_HELP_S)
    named = re.findall(r"(?:^|[\s,\[])--?([a-z][\w-]+)", told.stdout + told.stderr)
    return sorted({name.replace("_", "-") for name in named})


def _answer(question: dict[str, Any]) -> Any:
    if "program" in question:
        return _options(question["program"])
    os.environ.update(question.get("env", {}))
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_args = import_module(first_of(PARSERS))
    parser = cli_args.make_arg_parser(FlexibleArgumentParser())
    options = sorted(o for o in parser._option_string_actions if o.startswith("--"))
    own = [word for word in question.get("own", ()) if word[:2] != "--" or word in options]
    given = list(question.get("given", ()))
    answer = {"error": "", "wrong": "", "options": options, "read": {}}
    answer["server"] = first_of(SERVERS)

    class Refused(Exception): ...

    def refuse(message: str) -> None:
        raise Refused(message)

    parser.error = refuse

    def configuration(args: list[str]) -> Any:
        parsed = parser.parse_args(args if own else ["--model", "m", *args])
        cli_args.validate_parsed_serve_args(parsed)
        if not own:
            return None
        from vllm.engine.arg_utils import AsyncEngineArgs

        parsed.model = getattr(parsed, "model_tag", None) or parsed.model
        return AsyncEngineArgs.from_cli_args(parsed).create_engine_config()

    try:
        made = configuration([*own, *given])
    except (Refused, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        if own and not isinstance(error, Refused) and _fails(configuration, own):
            return answer  # it is not these arguments' doing; the start will say more
        flags = (word.partition("=")[0] for word in given if word.startswith("-"))
        said, wrong = _reason(error)
        wrong = wrong or next((f for f in flags if f in said and f not in options), "")
        return answer | {"error": said, "wrong": wrong}
    if drafts := made and made.speculative_config:
        answer["read"] = {
            "tokens": int(drafts.num_speculative_tokens or 0),
            "drops_block": bool(getattr(drafts, "use_eagle_block_drop", drafts.use_eagle)()),
            "kv_elements": _kv_elements(made, drafts),
        }
    return answer


def _fails(configuration: Any, args: list[str]) -> bool:
    try:
        configuration(args)
    except Exception:
        return True
    return False


def _reason(error: Exception) -> tuple[str, str]:
    """The first sentence of an error, and the value that it rejects, if that is a text."""
    wrong, said = "", str(error).strip()
    if hasattr(error, "errors"):  # pydantic's, whose text begins with the number of errors
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = (f"{place}: " if place else "") + first["msg"].removeprefix("Value error, ")
        wrong = first["input"] if isinstance(first["input"], str) else ""
    lines = said.splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip("."), wrong


def _kv_elements(made: Any, drafts: Any) -> int:
    """Elements of a token's KV in the layers of a draft model; 0 for methods without one."""
    if drafts.method not in ("draft_model", "eagle", "eagle3", "mtp", "dflash", "dspark"):
        return 0
    draft = drafts.draft_model_config
    layers = draft.get_num_layers(made.parallel_config)
    return int(2 * layers * draft.get_total_num_kv_heads() * draft.get_head_size())


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
