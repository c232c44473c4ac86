"""What a sweep decides: the operating points of each arm, and which load it serves within limits.

`point_findings` has throughput, cost and energy, `decision_findings` the highest load.
"""
