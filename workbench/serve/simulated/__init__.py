"""Simulated vLLM and LMCache servers: real counters, seeded times, fault injection.

`pretend` substitutes them for the real processes of a deployment; `faults` lists the faults.
"""
