"""`wb.form`, `wb.explore`, `wb.what_if`: widgets in a front end, otherwise a figure or text."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import PlanError
from workbench.experiment.result.result import Result
from workbench.experiment.run.progress_bar import has_front_end
from workbench.explorer.fields import fields_of
from workbench.grammars import spare_grammars

_PACKAGES = ("ipywidgets", "plotly", "anywidget")


def form(notebook: str, *, interactive: bool | None = None, **values: Any) -> Any:
    """A form for the parameters of a notebook, with its plan, Run and Cancel.

    `values` are filled in. After a run `form.result` is its result. Without a front end, as under
    papermill, it is a line of text and starts nothing; `interactive` overrides this choice.
    Raises ParameterError for an unknown notebook or parameter, PlanError without the packages.
    """
    known = {field.name for field in fields_of(notebook)}
    if unknown := values.keys() - known:
        from workbench.params.notebooks import check_params

        check_params(notebook, dict.fromkeys(sorted(unknown), ""))
    if not _shown(interactive):
        return _markdown(
            f"`wb.form` needs JupyterLab or VS Code. Elsewhere use `workbench run {notebook}`."
        )
    _prepare("wb.form")
    from workbench.explorer.form import Form

    return Form(notebook, values)


def explore(
    what: Result | Path | str | Sequence[Result | Path | str],
    other: Result | Path | str | None = None,
    *,
    interactive: bool | None = None,
) -> Any:
    """Explore the requests of a result, of two side by side, or the lookups of an LMCache log.

    `what` is a result, the folder of a run, or a log (several: a list). Without a front end, as
    under papermill, it shows a static figure; `interactive` overrides this choice. Raises
    ResultError for a folder without a result, ParameterError for a log that cannot be read, and
    PlanError without the packages.
    """
    from workbench.explorer.sources import (
        has_requests,
        static_figures,
        what_is,
        without_requests,
    )

    found = what_is(what, other)
    if not _shown(interactive):
        display: Any = import_module("IPython.display").display
        for figure in static_figures(found):
            display(figure)
        return None
    if bare := [one for one in found if isinstance(one, Result) and not has_requests(one)]:
        return _markdown(without_requests(bare[0]))
    _prepare("wb.explore")
    from workbench.explorer.explorer import Explorer
    from workbench.explorer.sources import source_of

    return Explorer([source_of(one) for one in found])


def what_if(profile: Path | str, *, interactive: bool | None = None, **values: Any) -> Any:
    """Sliders for a prediction from a profile.json: rate, lengths, cached share, link bandwidth.

    `values` are initial parameters of `pd_sweep`, such as `topology="1p4d", rate_per_s=2`. Without
    a front end, for example under papermill, it shows a static figure, or a sentence if nothing is
    predicted; `interactive` overrides this choice. Raises ResultError for a file that is not a
    profile, PlanError and ParameterError for values that do not fit the profile.
    """
    from workbench.report.figures import predicted_rates
    from workbench.whatif.profiles.profile_file import read_profile
    from workbench.whatif.rate_curve import quick, started

    found = read_profile(profile)
    begun = started(found, values)
    if not _shown(interactive):
        made = quick(found, begun)
        if made.prediction.refused:
            return _markdown(made.sentence)
        return predicted_rates(made.curves, made.sentence, " ".join(made.notes))
    _prepare("wb.what_if")
    from workbench.explorer.sliders import Sliders

    return Sliders(found, begun)


def _markdown(text: str) -> Any:
    show: Any = import_module("IPython.display").Markdown
    return show(text)


def _shown(interactive: bool | None) -> bool:
    return has_front_end() if interactive is None else interactive


def _prepare(name: str) -> None:
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise PlanError(
            f"{name} needs {', '.join(_PACKAGES)}, and {', '.join(missing)} cannot be imported"
            " (example: pip install -e '.[notebooks]')"
        )
    spare_grammars()
