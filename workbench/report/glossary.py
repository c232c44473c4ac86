"""The product's own words, with one sentence each: tooltips of the page, glossary of the README."""

from __future__ import annotations

GLOSSARY = {
    "arm": (
        "One set-up that is measured, for example 1p4d with LMCache or its baseline of 5 "
        "aggregated instances."
    ),
    "pass": (
        "One run of the workload against an arm in one cache state, for example cold or store-warm."
    ),
    "round": (
        "One launch of an arm with fresh servers, followed by all its passes. Intervals come from "
        "the spread between rounds."
    ),
    "gate": (
        "A check that decides whether a number may be used: PASS, FAIL, or INCONCLUSIVE if it "
        "could not be decided."
    ),
    "doubt": "A weakness of this run that no gate covers, such as too few requests for a p99.",
    "ledger": (
        "The table that says where each prompt token came from: computed, a prefix cache, the KV "
        "store, or another instance."
    ),
}
"""The six words that a reader does not know from vLLM or LMCache."""
