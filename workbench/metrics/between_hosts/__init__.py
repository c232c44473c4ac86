"""What several hosts change: how well their clocks agree, and what the link between them costs.

`clocks` makes durations of several hosts comparable. `crossing` finds the link rate from which on a
split pays.
"""
