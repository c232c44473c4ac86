"""Checks that must hold before a number is shown, and what a failed one takes away.

One module per subject; `gate` has the record and the rule, `gate_table` the kinds of number.
"""
