"""The PD proxy: one address in front of prefill and decode instances.

`proxy_legs` knows what the connectors want of the two legs.
"""
