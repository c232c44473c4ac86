"""The invented results of tests/report."""

from tests.report.conftest import comparisons, requests, result, summary

__all__ = ["comparisons", "requests", "result", "summary"]
