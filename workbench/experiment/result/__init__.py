"""A run's result: the folder it is written to, its files, and the tables made of them.

`result` is what notebooks hold.
"""
