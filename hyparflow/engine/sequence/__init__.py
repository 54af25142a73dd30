"""Sequence parallelism: attention over ranks and chunks, and a stage that runs by it (FPDT).

Imports comm, engine.compiled, engine.gradients, engine.kernels, engine.loss, engine.stages,
engine.weights, formats, model, options and pipeline.
"""
