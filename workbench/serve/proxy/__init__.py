"""The PD proxy: one URL in front of all instances; `legs` sends a request to two of them."""
