"""Processes: what one is, and how this machine starts, watches and ends them.

`launcher` is the seam that another place (containers, other hosts) implements; `local` is here.
"""
