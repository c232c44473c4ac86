"""Whole engines in one process each: vLLM beside transformers, and vLLM's own benchmarks.

A module is one recipe; `engine` has what they share: starting vLLM, and what is loaded for it.
"""
