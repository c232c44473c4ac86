"""One launch of an arm: its passes, one after the other.

`measure` makes the cache state of each (`isolation`), sends the load and counts (`launch_counts`).
"""
