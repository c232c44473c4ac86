"""LMCache's logs, in-process and multi-process, read into one row per request.

Start at `read_log` in `log_summary`. Data flows from `lines` (patterns) over `scan` (events) and
`event_frames` to `in_process` and `multi_process` (requests).
"""
