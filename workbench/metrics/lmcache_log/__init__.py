"""LMCache's log lines of both generations, read into one row per request.

`reader` is the way in; the other modules each know one kind of line.
"""
