"""Many requests on schedule: the loop that sends, its processes, and whether the client kept up.

What one request does on its socket is in `load.http`.
"""
