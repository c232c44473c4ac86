"""The machine, its GPUs and the arithmetic of models and KV on them.

`machine` and `gpus` read what is there, `power` what it uses; `physics`, `models` and `kv` are
formulas and sizes.
"""
