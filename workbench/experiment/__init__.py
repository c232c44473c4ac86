"""Conduct serve, load and metrics: arms, passes, rounds, results."""
