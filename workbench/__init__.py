"""KV-cache serving workbench."""
