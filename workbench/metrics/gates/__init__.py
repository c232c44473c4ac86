"""Checks that must hold before a number is shown, and the effect of one that failed.

One module per subject; `gate` has the record and the rule, `gate_table` every gate,
`gate_effects` what failed ones do to a number.
"""
