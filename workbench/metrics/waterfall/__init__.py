"""Where TTFT goes: its parts, and how well the clocks agree that timed them.

`waterfall` splits the TTFT of each request; `clocks` makes durations of several hosts comparable.
"""
