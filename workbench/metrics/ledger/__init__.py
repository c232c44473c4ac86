"""Where every prompt token came from, pass by pass, and the cause of each gap.

`ledger` balances the accounts; `causes` explains what they do not share.
"""
