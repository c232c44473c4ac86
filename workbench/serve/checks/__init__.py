"""What is checked before anything starts: engine arguments, connectors, and GPUs."""
