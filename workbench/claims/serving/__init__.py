"""Recipes of the serving level: each is a plan of the workbench, run and read.

One run serves several claims, since launches are what costs time.
"""
