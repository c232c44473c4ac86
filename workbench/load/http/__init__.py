"""One request on its socket: from its bytes to the record of its answer.

Stamps are taken here, as near to the kernel as they can be.
"""
