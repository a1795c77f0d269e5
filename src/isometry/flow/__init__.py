"""What a model does with its parameters, read from the operations that its own forward code dispatches.

`graph` records the operations, `cones` follow a signal through pointwise code, `streams` find residual
branches, `attention` queries and keys, and `roles` tell what each parameter is for.
"""
