"""The source of every prompt token, pass by pass, and the cause of every difference.

`ledger` compares expected and observed tokens; `causes` explains the differences.
"""
