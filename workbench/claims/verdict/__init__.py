"""The verdict on a claim, gate by gate: complete, possible, fair, sound, and the number itself.

Pure functions; nothing here reads a file or measures.
"""
