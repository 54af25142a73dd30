"""One training step on one rank: it executes the lowered list of its partition.

Imports comm, engine.compiled, engine.custom_steps, engine.experts, engine.gradients,
engine.kernels, engine.loss, engine.sequence, engine.stages, engine.weights, model, options and
pipeline.
"""
