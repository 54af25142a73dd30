"""One stage of the model on this rank: its call, its gradients, its batch normalization.

Imports engine.compiled, model and comm.
"""
