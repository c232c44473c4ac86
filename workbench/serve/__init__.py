"""Start and stop vLLM servers, KV stores and the proxy; nothing here measures.

`deployment` plans and starts the servers of a topology, `vllm` knows the engine's command line,
`connectors` how KV moves, `processes` how programs are started and ended.
"""
