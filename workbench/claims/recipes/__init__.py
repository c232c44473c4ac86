"""What a recipe is, and how its launches become rows and intervals.

The recipes of each level are in `kernels`, `engines` and `serving`.
"""
