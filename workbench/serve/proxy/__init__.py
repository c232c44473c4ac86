"""The PD proxy: one address in front of all instances; `legs` carries a request to two of them."""
