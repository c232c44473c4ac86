"""A deployment as a file for Docker Compose: its services, their order, and monitoring.

Services are made from the same plan as the processes of a notebook.
"""
