"""Conduct serve, load and metrics: from a plan by launches and passes to a result.

Each room is a step: `plan`, `run`, `findings`, `result`; `hits` is the analysis of cache hits.
"""
