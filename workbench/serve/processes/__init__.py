"""Processes: how they are started, monitored and ended.

`launcher` is the interface of a place where they run; `local` is this machine, `containers` are
those of docker or podman.
"""
