"""Single operations on a CPU or a GPU: attention, paged KV, quantised KV, pools, copies.

Each module is a recipe: what runs in the measuring process, and what its rows mean.
"""
