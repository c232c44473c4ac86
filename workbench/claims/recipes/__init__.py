"""What a recipe is, and how its launches become rows and intervals.

The recipes themselves live by level in `kernels`, `engines` and `serving`.
"""
