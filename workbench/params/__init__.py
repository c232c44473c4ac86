"""The parameters of the notebooks: names, types, bounds and help of each parameter.

`notebooks` has one record per notebook, made of what `shared` asks; `rules` reads a value.
"""
