"""A pretend vLLM and a pretend LMCache store: true counters, seeded times, faults on demand.

`pretend` puts them in place of the real processes of a deployment; `faults` has what can go wrong.
"""
