"""Modules that vLLM imports by their bare names: this folder is on the path of its processes.

They need vLLM and torch, and nothing of the workbench.
"""
