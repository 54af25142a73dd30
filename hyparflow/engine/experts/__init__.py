"""Mixtures of experts whose experts lie on several ranks.

Imports comm, engine.compiled, engine.stages, engine.weights, experts, model, options and pipeline.
"""
