"""Result files of other load generators, read into our definitions.

Start at `read_peer`. Each form of file has a module; `not_read` has the errors.
"""
