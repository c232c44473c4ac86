"""Published claims as data, the checks that a comparison is fair, and verdicts with a reason.

Recipes measure what can be measured here; `validation` brings the two together.
"""
