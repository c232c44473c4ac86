"""Simulated vLLM and LMCache servers: real counters, seeded times, fault injection.

`substitution` replaces the real processes of a deployment; `faults` lists the faults.
"""
