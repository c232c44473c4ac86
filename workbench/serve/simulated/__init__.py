"""A pretend vLLM and a pretend LMCache store: true counters, seeded times, faults on demand."""
