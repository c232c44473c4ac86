"""Many requests at their times: the loop that sends, its workers, and whether they kept up.

What one request does on its socket is in `load.http`.
"""
