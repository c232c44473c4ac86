"""LMCache's log lines of both generations, read into one row per request.

The way: `lines` (what is looked for) -> `scan` (events) -> `event_frames` -> `in_process` and
`multi_process` (requests) -> `log_summary`, whose `read_log` is the way in.
"""
