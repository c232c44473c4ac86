"""Workloads that come from a file of the user's: traces and prompts.

Readers name file, line and field of what they cannot read.
"""
