"""A plan carried out: launches, passes, the reading of counters, progress and the run's log.

`run` is the way in; it ends what it starts.
"""
