"""Lists of requests with exact token counts and known sharing, and when each is sent.

Everything here is made from a seed, before anything is sent.
"""
