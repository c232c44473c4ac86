"""Runs a plan: launches, passes, counters, progress and the log of the run.

`run` is the way in; it ends what it starts.
"""
