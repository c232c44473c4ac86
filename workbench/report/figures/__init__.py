"""Figures as SVG, with the finding as title: medians and ratios of arms, and single requests."""

from workbench.report.figures.chart import Chart
from workbench.report.figures.hits import hit_against_ideal, ttft_against_cached_share
from workbench.report.figures.latencies import latency_panels, requests_over_time
from workbench.report.figures.medians import tps_by_topology, ttft_by_topology
from workbench.report.figures.ratios import speedups
from workbench.report.figures.waterfall import ttft_waterfall

__all__ = [
    "Chart",
    "hit_against_ideal",
    "latency_panels",
    "requests_over_time",
    "speedups",
    "tps_by_topology",
    "ttft_against_cached_share",
    "ttft_by_topology",
    "ttft_waterfall",
]
