"""Which cache served each prompt token, in a live run or an existing log.

Start at `hit_analysis`. `served_tokens` counts, `hit_findings` compares, the others write.
"""
