"""From records and counters to what was found: comparisons, gates and the sentences about them.

Pure functions of a plan and its frames.
"""
