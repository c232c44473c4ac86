"""Runs beside one another, and beside result files of other load generators.

The comparison with its page, and the answer of `workbench gate` for CI.
"""
