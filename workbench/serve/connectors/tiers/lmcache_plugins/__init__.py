"""Modules that LMCache's server loads itself, from this folder; none imports the workbench."""
