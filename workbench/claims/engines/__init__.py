"""Whole engines, each in one process: vLLM and transformers, and vLLM's own benchmarks.

Each module is a recipe; `engine` starts vLLM for them.
"""
