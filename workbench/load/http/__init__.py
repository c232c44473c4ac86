"""One request on its socket: from its bytes to the record of its response.

Timestamps are taken here, as close to the kernel as possible.
"""
