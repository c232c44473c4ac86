"""What results of several runs say about each other.

Which settings differ, ratios of launches that did not alternate, and whether a run is worse.
"""
