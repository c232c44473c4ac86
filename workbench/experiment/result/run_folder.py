"""The folder of a run: written as an attempt, and moved up only if the run succeeds.

    outputs/<notebook>/<run_id>/            the newest good result: result.json, *.parquet, logs/
    outputs/<notebook>/<run_id>/attempt-*   a run in progress, or one that failed
    outputs/<notebook>/<run_id>/earlier/    result.json of each result that a rerun replaced

A failed rerun never touches the result of an earlier one, and two at a time do not collide. Frames
are parquet files, written so that a million requests can be read back in seconds.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result_file import to_plain
from workbench.hardware.machine import repository_root
from workbench.load.files.trace_file import write_trace
from workbench.load.files.traces import Trace

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


KEPT = "launches.json"
"""Next to the frames of an attempt: the finished launches, and all else that resuming needs."""
NOW, SO_FAR = "now.json", "so-far"
"""What a run does now, and the partial result and page that were made of it."""
EARLIER = "earlier"
"""In a run's folder: the result.json of each earlier result, by the time it was written."""
GROUP_ROWS = 100_000
BULKY = ("chunk_s", "chunk_tokens", "text")
"""Columns that are not read from a file of more than GROUP_ROWS rows."""


def output_root(output_dir: str) -> Path:
    """`output_dir` as a path; relative ones start at the root of the repository.

    The working folder differs: papermill uses the shell's, JupyterLab the notebook's.
    """
    return repository_root() / output_dir


_OF_SOME = ("repeated-", "traces", KEPT)
"""What only some results have, beside frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """`home` is the run's folder, `attempt` the part of it that this process writes."""

    home: Path
    attempt: Path
    _held: list[int] = field(default_factory=list, repr=False, compare=False)
    """Open files whose lock tells other processes that this attempt is under way."""

    @classmethod
    def unfinished(cls, output_dir: str, notebook: str, run_id: str) -> Iterator[Self]:
        """Attempts of this run that no living process writes, the newest first.

        Each is held while the caller looks at it; `let_go` gives it back.
        """
        home = output_root(output_dir) / notebook / run_id
        for attempt in sorted(home.glob("attempt-*"), reverse=True):
            folder = cls(home=home, attempt=attempt)
            if folder._hold():
                yield folder

    @classmethod
    def is_under_way(cls, output_dir: str, attempt: str) -> bool:
        """Whether a living process writes the attempt of this name, of whatever run."""
        for found in output_root(output_dir).glob(f"*/*/{attempt}"):
            folder = cls(home=found.parent, attempt=found)
            if not folder._hold():
                return True
            folder.let_go()
        return False

    @classmethod
    def forget(cls, output_dir: str, notebook: str, run_id: str) -> None:
        """Make sure that no later run resumes an unfinished one."""
        for folder in cls.unfinished(output_dir, notebook, run_id):
            (folder.attempt / KEPT).unlink(missing_ok=True)
            folder.let_go()

    @classmethod
    def open(cls, output_dir: str, notebook: str, run_id: str) -> Self:
        """A new attempt."""
        home = output_root(output_dir) / notebook / run_id
        # Prompts are salted with this name, so two runs on a shared server must never share it.
        own = f"{os.getpid()}-{secrets.token_hex(2)}"
        attempt = home / f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{own}"
        (attempt / "logs").mkdir(parents=True)
        folder = cls(home=home, attempt=attempt)
        folder._hold()
        return folder

    def _hold(self) -> bool:
        """Lock the attempt for as long as this process lives; False if another one has it."""
        try:
            held = os.open(self.attempt, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            return False
        self._held.append(held)
        return True

    def repeated(self) -> Self:
        """A folder within this attempt, for rows that are not part of the result.

        Its name is new, since prompts are salted with it.
        """
        inner = self.attempt / f"repeated-{secrets.token_hex(4)}"
        (inner / "logs").mkdir(parents=True, exist_ok=True)
        return type(self)(home=self.home, attempt=inner)

    def let_go(self) -> None:
        """End the lock."""
        while self._held:
            os.close(self._held.pop())

    @property
    def logs(self) -> Path:
        return self.attempt / "logs"

    def new_logs(self, *names: str) -> Path:
        """A folder for the logs of a launch; those of one that broke off are put aside.

        What is read from logs must not be another launch's, and a store's disk must be empty.
        """
        folder = self.logs.joinpath(*names)
        if folder.exists():
            shutil.rmtree(folder / "disk", ignore_errors=True)
            aside = (folder.with_name(f"{folder.name}-broken-off-{n}") for n in itertools.count(1))
            os.replace(folder, next(path for path in aside if not path.exists()))
        return folder

    def promote(self) -> None:
        """Make this attempt the run's result; result.json goes last, since it marks success."""
        (self.attempt / NOW).unlink(missing_ok=True)
        shutil.rmtree(self.attempt / SO_FAR, ignore_errors=True)
        names = sorted(self.attempt.iterdir(), key=lambda path: path.name == "result.json")
        new = {path.name for path in names}
        with open(self.home / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of one id may end at the same moment
            for path in self.home.iterdir():  # what this result does not have
                ours = path.suffix == ".parquet" or path.name.startswith(_OF_SOME)
                if ours and path.name not in new:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._keep_earlier()
            for path in names:
                target = self.home / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
            self.attempt.rmdir()
            # they show the result that was replaced
            for stale in ("report.html", "run.ipynb", "profile.json"):
                (self.home / stale).unlink(missing_ok=True)
            for stale in ("report", "benchmark_report"):
                shutil.rmtree(self.home / stale, ignore_errors=True)

    def _keep_earlier(self) -> None:
        """Copy the result.json that is about to be replaced: it is a point of the history."""
        old = self.home / "result.json"
        if old.exists():
            written = time.strftime("%Y%m%d-%H%M%S", time.gmtime(old.stat().st_mtime))
            (self.home / EARLIER).mkdir(exist_ok=True)
            shutil.copy2(old, self.home / EARLIER / f"{written}.json")

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Save a frame as parquet, atomically."""
        partial = self.attempt / f".{name}.partial"
        write_frame(partial, frame)
        os.replace(partial, self.attempt / f"{name}.parquet")

    def write_trace(self, arm: str, trace: Trace) -> None:
        """Save a pass as a file in the Mooncake format, `traces/ARM.jsonl`."""
        folder = self.attempt / "traces"
        folder.mkdir(exist_ok=True)
        write_trace(trace, folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', arm).strip('-')}.jsonl")

    def write_facts(self, facts: RunFacts) -> None:
        """Save result.json, atomically."""
        text = json.dumps(to_plain(facts), indent=1, allow_nan=False) + "\n"
        self.write_text("result.json", text)

    def write_text(self, name: str, text: str) -> None:
        """Save a text file, atomically."""
        partial = self.attempt / f".{name}.partial"
        partial.write_text(text)
        os.replace(partial, self.attempt / name)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame without its index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, path, row_group_size=GROUP_ROWS, **write_options(table.schema))


def write_options(schema: pa.Schema) -> dict[str, object]:
    """Options of `pyarrow.parquet.write_table` for such a table.

    Stamps are byte-stream split: with a million responses of 128 chunks the file is a third smaller
    and takes 0.7 s less CPU to read (2026-11-25).
    """
    import pyarrow as pa

    stamps: list[str] = []
    others: list[str] = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        path = f"{name}.list.element" if pa.types.is_list(kind) else name
        (stamps if kind == pa.list_(pa.float64()) else others).append(path)
    split = dict.fromkeys(stamps, "BYTE_STREAM_SPLIT")
    return {"compression": "zstd", "use_dictionary": others, "column_encoding": split or None}


def read_frame(path: Path, *, whole: bool = False) -> pd.DataFrame:
    """Read a frame; one of more than GROUP_ROWS rows without the BULKY columns, unless `whole`.

    Raises ResultError for a file that is cut off or no parquet file.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(path)
        if whole or about.num_rows <= GROUP_ROWS:
            return pd.read_parquet(path)
        names = about.schema.to_arrow_schema().names
        return pd.read_parquet(path, columns=[name for name in names if name not in BULKY])
    except (OSError, pa.ArrowException) as error:
        raise ResultError(f"{path} cannot be read ({error})") from error


class FrameFiles(Mapping[str, "pd.DataFrame"]):
    """The frames `names` of a run folder, each read on first use."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        paths = {name: folder / f"{name}.parquet" for name in names}
        self._paths = {name: path for name, path in paths.items() if path.exists()}
        self._read: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            self._read[name] = read_frame(self._paths[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
