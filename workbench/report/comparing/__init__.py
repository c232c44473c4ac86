"""Comparisons of runs with each other, and with result files of other load generators.

Also their page, and the output of `workbench gate` for CI.
"""
