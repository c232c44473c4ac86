"""Published claims as data, read from `params/claims/*.yaml` and checked.

The arithmetic that a claim's own numbers must agree with lives here too.
"""
