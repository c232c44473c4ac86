"""Make prompts, send them at set times, and keep one record per request.

`catalogue` has every workload by its name; `drive` sends one.
"""
