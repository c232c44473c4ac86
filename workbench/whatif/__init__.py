"""What if: a profile of 1p1d as measured here, and a simulation that predicts other topologies.

A prediction says where it does not hold, and its error where a measured run is given.
"""
