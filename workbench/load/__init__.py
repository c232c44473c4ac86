"""Make prompts, send them at set times, and keep one record per request."""
