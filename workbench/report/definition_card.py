"""The definition card of a run, for the page's appendix: four tools' formulas on its own stamps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.experiment.result.result import Result
from workbench.metrics.definitions import METRICS, TOOLS, VERSIONS, card, definition_of
from workbench.report.outcome import folder_of

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {
    "workbench": "Workbench",
    "vllm_bench": "vLLM bench",
    "guidellm": "GuideLLM",
    "aiperf": "AIPerf",
}
MOST_ROWS = 100_000
_KIND = ("arm", "workload", "n_requests", "pass")
"""What requests of one kind have in common, where the frame has the column."""
_OF = {
    "arm": "arm {}",
    "workload": "workload {}",
    "n_requests": "{} requests per pass",
    "pass": "{} pass",
}
_STAMPS = ("error sent_s scheduled_s chunk_s chunk_tokens output_tokens stream_end_s").split()


def definition_card(result: Result, notebook: Path) -> dict[str, Any] | None:
    """What the template shows: `of`, `tools`, `versions`, `rows` and `sources`.

    None where there are no requests. They come from the run's folder, else from beside the
    notebook, and only where result.json there is that of this run: a later run may have taken the
    folder. One kind of request is used, that with the most rows, since a median over cold and warm
    passes is neither.
    """
    requests = _requests(result, notebook)
    if requests is None or requests.empty:
        return None
    left_out, of = requests.attrs["left_out"], "all requests"
    if keys := [name for name in _KIND if name in requests]:
        kinds = requests.groupby(keys, sort=False, dropna=False)
        # not get_group: it finds no group whose key is missing
        requests = requests[kinds.ngroup() == int(kinds.size().to_numpy().argmax())]
        kind = requests[keys].iloc[0].dropna()
        of = ", ".join(_OF.get(str(name), "{}").format(value) for name, value in kind.items())
    if left_out:
        of += f", of the first {MOST_ROWS:,} requests of {MOST_ROWS + left_out:,}"
    values = card(requests)
    found = {(metric, tool): definition_of(metric, tool) for metric in METRICS for tool in TOOLS}
    return {
        "of": of,
        "sent": len(requests),
        "tools": [_NAMES[tool] for tool in TOOLS],
        "versions": ", ".join(f"{_NAMES[tool]} {VERSIONS[tool]}" for tool in TOOLS[1:]),
        "rows": [
            (metric, [(values.at[metric, tool] if found[metric, tool].values else None,
                       found[metric, tool].formula) for tool in TOOLS])
            for metric in METRICS
        ],
        "counted": [int(n) for n in values.to_numpy()[-1]],
        "sources": [
            (f"{metric}, {_NAMES[tool]}", definition.source)
            for (metric, tool), definition in found.items()
            if definition.source
        ],
    }  # fmt: skip


def _requests(result: Result, notebook: Path) -> pd.DataFrame | None:
    """The stamps of the run's requests, or None where they are not there, or not of this run."""
    folder = folder_of(result, notebook)
    if folder is None:
        return None
    try:
        return _read(folder / "requests.parquet")
    except (OSError, ValueError):  # no rows, or a file that is cut off
        return None


def _read(path: Path) -> pd.DataFrame:
    """The columns that the card needs, of the first MOST_ROWS requests: stamps are bulky."""
    from pyarrow.dataset import dataset

    file = dataset(path)
    columns = [*(name for name in _KIND if name in file.schema.names), *_STAMPS]
    frame: pd.DataFrame = file.head(MOST_ROWS, columns=columns, batch_size=10_000).to_pandas()
    frame.attrs["left_out"] = file.count_rows() - len(frame)
    return frame
