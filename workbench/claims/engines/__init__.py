"""Whole engines in one process each: vLLM beside transformers, and vLLM's own benchmarks."""
