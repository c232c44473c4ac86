"""What single operations cost, on a CPU or a GPU: attention, paged KV, quantised KV, pools.

A module is one recipe: what runs in the process that measures, and what becomes of its rows.
"""
