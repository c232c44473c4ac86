"""Result files of other load generators, read into our definitions.

`peer_files` is the way in; it says what a file lacks.
"""
