"""Figures as SVG, with the finding as title: medians and ratios of arms, and single requests."""

from workbench.report.figures.break_even import break_even, chunk_effect, cost_of_storing
from workbench.report.figures.cache_size import cache_size
from workbench.report.figures.chart import Chart
from workbench.report.figures.hits import hit_against_ideal, ttft_against_cached_share
from workbench.report.figures.latencies import latency_panels, requests_over_time
from workbench.report.figures.medians import tps_by_topology, ttft_by_topology
from workbench.report.figures.rates import rates
from workbench.report.figures.ratios import speedups
from workbench.report.figures.sources import token_sources
from workbench.report.figures.tiers import hits_by_tier, served_over_requests
from workbench.report.figures.waterfall import ttft_waterfall

__all__ = [
    "Chart",
    "break_even",
    "cache_size",
    "chunk_effect",
    "cost_of_storing",
    "hit_against_ideal",
    "hits_by_tier",
    "latency_panels",
    "rates",
    "requests_over_time",
    "served_over_requests",
    "speedups",
    "token_sources",
    "tps_by_topology",
    "ttft_against_cached_share",
    "ttft_by_topology",
    "ttft_waterfall",
]
