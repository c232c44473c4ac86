"""Figures as SVG, with the finding as title; each takes a frame of a result.

`marks` is what they are all drawn with, `chart` the board that they are drawn on. A new figure is
a function that returns what `chart.draw` makes of it, and a name below.
"""

from workbench.report.figures.between_runs import between_runs
from workbench.report.figures.break_even import break_even, chunk_effect, cost_of_storing
from workbench.report.figures.cache_size import cache_size
from workbench.report.figures.chart import Chart
from workbench.report.figures.connectors import connectors
from workbench.report.figures.links import links
from workbench.report.figures.loads import loads
from workbench.report.figures.panels import panels
from workbench.report.figures.pareto import pareto
from workbench.report.figures.predicted_rates import predicted_rates
from workbench.report.figures.readiness import readiness
from workbench.report.figures.residuals import residuals
from workbench.report.figures.side_by_side import speedups_by_model
from workbench.report.figures.single_requests import (
    hit_against_ideal,
    latency_panels,
    requests_over_time,
    ttft_against_cached_share,
)
from workbench.report.figures.splits import splits
from workbench.report.figures.tokens import hits_by_tier, served_over_requests, token_sources
from workbench.report.figures.topologies import speedups, topology_overview
from workbench.report.figures.waterfall import ttft_waterfall
from workbench.report.figures.working_sets import working_sets

__all__ = [
    "Chart",
    "between_runs",
    "break_even",
    "cache_size",
    "chunk_effect",
    "connectors",
    "cost_of_storing",
    "hit_against_ideal",
    "hits_by_tier",
    "latency_panels",
    "links",
    "loads",
    "panels",
    "pareto",
    "predicted_rates",
    "readiness",
    "requests_over_time",
    "residuals",
    "served_over_requests",
    "speedups",
    "speedups_by_model",
    "splits",
    "token_sources",
    "topology_overview",
    "ttft_against_cached_share",
    "ttft_waterfall",
    "working_sets",
]
