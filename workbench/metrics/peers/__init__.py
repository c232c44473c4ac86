"""Result files of other load generators, read into our definitions.

`read_peer` is the way in; a module for each form of file, and `not_read` for what is none.
"""
