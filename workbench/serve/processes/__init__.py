"""Processes on this machine: start, readiness, logs and the end, also when the kernel is killed.

`forkserver` starts CPU instances from a warm process; `supervisor` ends what was left.
"""
