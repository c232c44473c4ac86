"""Which cache answered each request, from a run of our own or from a server's log.

`hit_analysis` is the way in. `served_tokens` counts, `hit_findings` compares, the others word it.
"""
