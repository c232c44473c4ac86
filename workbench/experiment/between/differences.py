"""Which settings of two runs differ: parameters, machine, versions, command lines, workload.

A difference that follows from another is shown, but not counted: parameters determine command lines
and workload, so these count only if no parameter, version or commit differs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from math import nan
from typing import Any, Literal, get_args

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.params.notebooks import NOTEBOOKS

Group = Literal["parameter", "machine", "version", "commit", "command line", "workload"]
Unlike = Literal["machine", "workload", "model"]
"""What must be the same in two runs that are compared, unless the caller says otherwise."""
UNLIKE: tuple[Unlike, ...] = get_args(Unlike)
REPETITION = "no setting differs: a repetition"

_NO_SETTINGS = {
    "output_dir", "link_runs", "prometheus_url", "grafana_url", "targets", "gpu_hour_price",
}  # fmt: skip
"""Parameters that do not affect what is measured."""
_SOFTWARE = {"os", "kernel", "python", "engine_python", "GPU driver", "memory_gb"}
"""Of a machine, what an update of its software changes; kernels reserve memory differently."""
_SAME_MEMORY = 0.05
"""Memory sizes that differ by less are equal: kernels reserve different parts of it."""
_ABSENT = "absent"
_NAMED = 6
"""So many names are in the first line."""
_PORTS = (
    (re.compile(r"(--[\w-]*port[ =])\d+"), r"\1PORT"),
    (re.compile(r'("[\w.]*port": "?)\d+'), r"\1PORT"),
    (re.compile(r"(?<=[\w.\]]):\d{2,5}\b"), ":PORT"),
    (re.compile(r"(--shm-name[ =])\S+"), r"\1NAME"),
)
_FOLDERS = re.compile(r"(?<![\w/:.])/(?:[^\s\"',/]+/)+")
_INTERPRETER = re.compile(r"^\S*python[\d.]*(?=\s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting with its value in both runs, as text."""

    group: Group
    name: str
    one: str
    other: str
    counted: bool = True
    """False if it follows from another difference."""


def differences(one: RunFacts, other: RunFacts) -> tuple[Difference, ...]:
    """Every setting that differs; those that follow from others come last."""
    found = [
        *_unequal("parameter", *map(_parameters, (one, other))),
        *_unequal("machine", *_machines(one, other)),
        *_unequal("version", *(dict(run.machine.get("versions") or {}) for run in (one, other))),
        *_unequal("commit", *map(_commit, (one, other))),
    ]
    cause = any(each.group in ("parameter", "version", "commit") for each in found)
    follow = [*_command_lines(one, other), *_workloads(one, other)]
    return (
        *found,
        *(replace(each, counted=not cause) for each in follow),
    )


def settings_key(run: RunFacts) -> str:
    """Equal for runs that differ in nothing but date, versions of software, and commit."""
    hardware = {name: value for name, value in _machine(run).items() if name not in _SOFTWARE}
    workload = run.workload.hash if run.workload else ""
    return json.dumps([_parameters(run), hardware, workload], sort_keys=True, default=str)


def first_line(found: Collection[Difference]) -> str:
    """`1 setting differs: connector (none and lmcache)`, or that several do."""
    counted = [each for each in found if each.counted]
    if not counted:
        return REPETITION
    if len(counted) == 1:
        (only,) = counted
        return f"1 setting differs: {only.name} ({only.one:.60} and {only.other:.60})"
    names = ", ".join(each.name for each in counted[:_NAMED])
    more = f" and {len(counted) - _NAMED} more" * (len(counted) > _NAMED)
    return f"{len(counted)} settings differ, so no effect can be attributed to one: {names}{more}"


def distinct_labels(names: Sequence[str]) -> list[str]:
    """The names of run folders, numbered where two are equal, as of a run and its repetition."""
    if len({*names}) == len(names):
        return list(names)
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


def check_alike(
    runs: Mapping[str, RunFacts], unlike: Collection[str] = (), *, command: str = "compare"
) -> None:
    """Refuse runs with different machines, workloads or models. Raises ResultError.

    `runs` are by the label that the message names. Each value is compared with that of the first
    run that has it; a file of an earlier version may lack it.
    """
    first: dict[str, tuple[str, str]] = {}
    several = any(run.models for run in runs.values())
    for label, run in runs.items():
        for kind, noun, value in _must_agree(run, several=several):
            named, wanted = first.setdefault(noun, (label, value))
            if value != wanted and kind not in unlike:
                raise ResultError(
                    f"{noun} must be the same in both runs, got {wanted} in {named} and {value} in"
                    f" {label}. Repeat one run, or allow the difference (example: workbench"
                    f" {command} ... --unlike {kind})"
                )


def _must_agree(run: RunFacts, *, several: bool) -> Iterator[tuple[Unlike, str, str]]:
    """What a run says of its model, machine and workload; `several`: a run has several models."""
    if several and (models := [row.model for row in run.models] or [run.engine.model]) != [""]:
        yield "model", "models", ", ".join(models)
    if run.engine.dtype:
        yield "model", "dtype", run.engine.dtype
    if run.engine.layers is not None:
        yield "model", "layers of the model", str(run.engine.layers)
    told = _machine(run)
    for name in ("cpu", "cores", "gpus", "platform"):
        if name in told:
            yield "machine", name, _text(told[name])
    if run.workload and run.workload.hash:
        yield "workload", "workload", _workload_text(run)
    for row in run.models:
        yield "model", f"dtype of {row.model}", row.dtype
        yield "model", f"layers of {row.model}", str(row.layers)
        yield "workload", f"workload of {row.model}", row.workload_hash[:12]


def _unequal(
    group: Group, one: Mapping[str, Any], other: Mapping[str, Any]
) -> Iterator[Difference]:
    for name in dict.fromkeys((*one, *other)):
        ours, theirs = (each.get(name, _ABSENT) for each in (one, other))
        if ours != theirs:
            yield Difference(group=group, name=name, one=_text(ours), other=_text(theirs))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def _parameters(run: RunFacts) -> dict[str, Any]:
    """The notebook and its parameters; those that an earlier version did not have, by default."""
    known = NOTEBOOKS.get(run.notebook)
    usual = asdict(known()) if known and run.parameters else {}
    values = usual | dict(run.parameters)
    return {
        "notebook": run.notebook,
        **{name: _plain(value) for name, value in values.items() if name not in _NO_SETTINGS},
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _machines(one: RunFacts, other: RunFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    ours, theirs = _machine(one), _machine(other)
    memory_gb = [each.get("memory_gb") or nan for each in (ours, theirs)]
    if max(memory_gb) <= (1 + _SAME_MEMORY) * min(memory_gb):
        theirs["memory_gb"] = ours["memory_gb"]
    return ours, theirs


def _machine(run: RunFacts) -> dict[str, Any]:
    names = (
        "cpu", "cores", "memory_gb", "platform", "visible_devices", "os", "kernel", "python",
        "engine_python",
    )  # fmt: skip
    told = {name: run.machine[name] for name in names if name in run.machine}
    if "gpus" in run.machine:
        gpus = run.machine["gpus"] or ()
        told["gpus"] = _counted(f"{gpu.get('name')} ({gpu.get('memory_gb')} GB)" for gpu in gpus)
        told["GPU driver"] = _counted(str(gpu.get("driver") or "") for gpu in gpus)
    if run.hosts:
        told["hosts"] = _counted(
            f"{host.cpu}, {host.cores} cores, GPUs {host.gpus}" for host in run.hosts
        )
    return told


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{n}x {name}" for name, n in sorted(Counter(names).items()))


def _commit(run: RunFacts) -> dict[str, str]:
    commit = run.machine.get("git_commit") or ""
    dirty = " with uncommitted changes" if run.machine.get("git_dirty") else ""
    return {"workbench commit": f"{commit[:12]}{dirty}"} if commit else {}


def _workload_text(run: RunFacts) -> str:
    sent = run.workload
    return f"{sent.name} {sent.hash[:12]} ({sent.requests} requests)" if sent else ""


def _workloads(one: RunFacts, other: RunFacts) -> Iterator[Difference]:
    if one.workload and other.workload and one.workload.hash != other.workload.hash:
        texts = map(_workload_text, (one, other))
        yield from _unequal("workload", *({"workload hash": text} for text in texts))


def _command_lines(one: RunFacts, other: RunFacts) -> Iterator[Difference]:
    """Options that processes of the same arm do not have in common."""
    theirs = {arm.label: arm for arm in other.arms}
    seen: set[tuple[str, str, str]] = set()
    for arm in one.arms:
        if arm.label not in theirs:
            continue
        pairs = zip_longest(arm.command_lines, theirs[arm.label].command_lines, fillvalue="")
        for words, more in ((options(ours), options(line)) for ours, line in pairs):
            for name in dict.fromkeys((*words, *more)):
                mine, others = (each.get(name, _ABSENT) for each in (words, more))
                if mine != others and (name, mine, others) not in seen:
                    seen.add((name, mine, others))
                    yield Difference(
                        group="command line", name=name, one=mine or "set", other=others or "set"
                    )


def options(line: str) -> dict[str, str]:
    """A command line by option, without ports, folders and the version in an interpreter's name.

    The words before the first option are under `program`.
    """
    for pattern, instead in _PORTS:
        line = pattern.sub(instead, line)
    line = _INTERPRETER.sub("python", _FOLDERS.sub("", line))
    found: dict[str, list[str]] = {}
    name = "program"
    for word in shlex.split(line):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found.setdefault(name, []).extend(filter(None, [value]))
        else:
            found.setdefault(name, []).append(word)
    return {name: " ".join(words) for name, words in found.items()}
