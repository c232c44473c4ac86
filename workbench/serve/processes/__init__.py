"""Processes: how this machine starts, monitors and ends them.

`launcher` is the interface for other places (containers, other hosts); `local` is this machine.
"""
