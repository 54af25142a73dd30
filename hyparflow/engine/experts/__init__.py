"""Mixtures of experts whose experts lie on several ranks.

Imports comm, engine.compiled, engine.stages, engine.weights, model, options and pipeline.
"""
