"""Start vLLM servers and what stands beside them; nothing here measures."""
