"""Show a result: figures, one offline page, an index.

`page` is the way in; what it says of a run was concluded in `experiment.findings`.
"""
