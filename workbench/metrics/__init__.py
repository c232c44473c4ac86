"""Turn records and counters into numbers, intervals and checks; nothing here runs anything.

`latency` defines TTFT and the like, `statistics` intervals and ratios; `gates` and `ledger` say
whether a number may be believed.
"""
