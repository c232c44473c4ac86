"""Sliders for predictions from a profile; each move predicts again within about a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from html import escape
from math import inf, isnan, log10
from typing import Any

import ipywidgets as widgets

from workbench.errors import WorkbenchError
from workbench.experiment.result.predicted import METRICS
from workbench.explorer import pictures
from workbench.explorer.style import style
from workbench.explorer.widget import Widget
from workbench.report.figures import predicted_rates
from workbench.report.numbers import number
from workbench.report.templating import labelled
from workbench.topology import ALL_TOPOLOGIES
from workbench.whatif.prediction import SATURATED, Prediction, level
from workbench.whatif.profiles.profile import Profile
from workbench.whatif.rate_curve import DRAWS, Quick, quick

AFTER_S = 0.15
"""Wait after the last move before predicting, because a held arrow key sends many values."""
_DECADES = 1.5
"""Range of the rate slider to each side, in powers of ten."""
_LINK = 4
"""Range of the bandwidth slider to each side, in powers of two."""


class Sliders(Widget):
    """A prediction that is updated when its load, link or topology changes."""

    def __init__(self, profile: Profile, values: Mapping[str, Any]) -> None:
        self.profile, self._values = profile, dict(values)
        self.found: Quick | None = None
        self._waiting: asyncio.TimerHandle | None = None
        self.inputs = dict(self._controls())
        self.problem = widgets.HTML()
        self.problem.add_class("wb-problem")
        self.sentence, self.numbers, self.drawing = (widgets.HTML() for _ in range(3))
        for one in self.inputs.values():
            one.observe(lambda _: self._soon(), "value")
        title = f"What if, from {profile.run_id}" + " (simulated)" * profile.simulated
        super().__init__(
            [
                widgets.HTML(f"{style()}<h3>{escape(title)}</h3>"),
                pictures.Front(),
                *(self._row(name, one) for name, one in self.inputs.items()),
                self.problem,
                self.sentence,
                self.numbers,
                self.drawing,
            ]
        )
        self.predict()

    def _controls(self) -> Iterator[tuple[str, Any]]:
        """The inputs. Their ranges exceed the profiled ones, where nothing is predicted."""
        given = self._values
        longest = round(self.profile.prefill.ranges["tokens"][1])
        looks: dict[str, Any] = {
            "style": {"description_width": "120px"}, "continuous_update": False,
            "layout": widgets.Layout(width="330px", max_width="100%"),
        }  # fmt: skip
        yield "topology", widgets.Combobox(
            value=str(given["topology"]), options=ALL_TOPOLOGIES.split(","),
            description="Topology", **looks,
        )  # fmt: skip
        rate, prompt, output = (
            float(given[name]) for name in ("rate_per_s", "prompt_tokens", "output_tokens")
        )
        middle = round(log10(rate), 2)
        yield "rate_per_s", widgets.FloatLogSlider(
            value=rate, min=middle - _DECADES, max=middle + _DECADES, step=0.02,
            readout_format=".3g", description="Rate, req/s", **looks,
        )  # fmt: skip
        yield "prompt_tokens", widgets.IntSlider(
            value=prompt, min=100, max=max(prompt, round(1.5 * longest, -2)), step=100,
            description="Prompt tokens", **looks,
        )  # fmt: skip
        yield "output_tokens", widgets.IntSlider(
            value=output, min=2, max=max(256, 8 * output), step=2, description="Output tokens",
            **looks,
        )  # fmt: skip
        yield "shared_share", widgets.FloatSlider(
            value=float(given["shared_share"]), min=0, max=0.95, step=0.05,
            description="Cached share", readout_format=".2f", **looks,
        )  # fmt: skip
        yield "link", widgets.FloatLogSlider(
            value=1, base=2, min=-_LINK, max=_LINK, step=0.5, description="Link bandwidth, x",
            readout_format=".2g", **looks,
        )  # fmt: skip

    def _row(self, name: str, one: Any) -> Any:
        low, high = self.profile.prefill.ranges["tokens"]
        byte_s = self.profile.costs().byte_s
        arrivals = str(self._values.get("arrivals", "auto")).replace("auto", "poisson")
        help_of = {
            "topology": "such as 1p4d (prefill, decode) or 5a (aggregated)",
            "rate_per_s": f"{arrivals.capitalize()} arrivals",
            "prompt_tokens": f"profiled: {low:,.0f} to {high:,.0f}",
            "output_tokens": "per request",
            "shared_share": "fraction of each prompt that is a shared prefix",
            "link": f"profiled: {number(1e-9 / byte_s)} GB/s" if byte_s
            else "profiled transfer time does not grow with the size",
        }  # fmt: skip
        row = widgets.HBox([one, widgets.HTML(f"<span class='wb-help'>{help_of[name]}</span>")])
        row.add_class("wb-field")
        return row

    def _soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not in a notebook
            self.predict()
            return
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = loop.call_later(AFTER_S, self.predict)

    def predict(self) -> None:
        """Predict what the inputs say; a refusal replaces numbers and figure."""
        given = self._values | {name: one.value for name, one in self.inputs.items()}
        link = given.pop("link")
        if given["workload"] in ("short", "shared_prefix"):
            given["workload"] = "shared_prefix" if given["shared_share"] else "short"
        self.found, said = None, ""
        try:
            self.found = quick(self.profile, given, link=link)
            said = self.found.prediction.refused and self.found.sentence
        except WorkbenchError as error:
            said = str(error)
        self.problem.value = f"<span role='alert'>{escape(said)}</span>" if said else ""
        if said or self.found is None:
            self.sentence.value = self.numbers.value = self.drawing.value = ""
            return
        sentence = escape(self.found.sentence)
        self.sentence.value = f"<p role='status' aria-live='polite'><b>{sentence}</b></p>"
        self.numbers.value = _tables(self.found)
        chart = predicted_rates(self.found.curves, self.found.sentence)
        notes = "".join(f"<p>{escape(note)}</p>" for note in (chart.caption, *self.found.notes))
        svg = labelled(chart.svg, chart.alt)
        self.drawing.value = f"<div class='wb-drawing' tabindex='0'>{svg}</div>{notes}"


def _tables(found: Quick) -> str:
    """Numbers of the topology and its aggregated baseline, and the utilisation of each part."""
    both = [found.prediction, *([found.beside] if found.beside else [])]
    heads = "".join(f"<th class='wb-number'>{one.topology}</th>" for one in both)
    lines = [
        f"<tr><td>{label}, {unit}</td>{''.join(_cell(one, name, factor) for one in both)}</tr>"
        for name, (label, factor, unit) in METRICS.items()
        if not isnan(found.prediction.number(name).value)
    ]
    refused = [f"<p>{one.topology}: {escape(one.refused)}</p>" for one in both if one.refused]
    closed = found.prediction.closed
    bars = [
        f"<tr><td>{escape(part)}</td><td class='wb-number'>{100 * share:.0f} %</td>"
        "<td><div class='wb-bar'"
        f" style='width:200px'><span style='width:{min(1, share):.1%};background:"
        f"{'#D55E00' if share > SATURATED else '#0072B2'}'></span></div></td></tr>"
        for part, most in closed.highest_per_s.items()
        if (share := closed.rate_per_s / most) > 0 and most < inf
    ]
    free = [part for part, most in closed.highest_per_s.items() if most == inf]
    told = f"<p>The profile shows no limit for: {', '.join(free)}.</p>" if free else ""
    return (
        f"<table><caption>Prediction [{level(DRAWS)} interval]</caption><tr><th></th>{heads}</tr>"
        f"{''.join(lines)}</table>{''.join(refused)}"
        f"<table><caption>Utilisation of {found.prediction.topology}</caption>{''.join(bars)}"
        f"</table>{told}"
    )


def _cell(one: Prediction, name: str, factor: float) -> str:
    value = one.number(name)
    if isnan(value.value):
        return "<td>-</td>"
    low, middle, high = (number(factor * each) for each in (value.low, value.value, value.high))
    return f"<td class='wb-number'>{middle} [{low}, {high}]</td>"
