"""What is sent in each pass: the workload, arrivals, the loads of a sweep or search."""
