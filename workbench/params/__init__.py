"""What a notebook can be told: names, types, bounds and help of each parameter.

`notebooks` has one record per notebook and checks what was typed; `rules` says what a value may be.
"""
