"""Show a result: figures, one offline page, an index."""
