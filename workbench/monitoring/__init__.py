"""Monitoring: what Prometheus and Grafana show of a deployment, and of a run that has one.

`panels` is the only list of panels; dashboard, rules and the page of a run are made from it.
"""
