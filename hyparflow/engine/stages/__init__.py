"""One stage of the model on this rank: its call, its gradients, its batch normalization.

Imports comm, engine.compiled, engine.gradients, engine.kernels, engine.loss,
engine.weights, model and pipeline.
"""
