"""What is to be measured: arms, passes, load and rounds, and whether the machine has room for it.

Nothing here starts a server or sends a request.
"""
