"""Losses and metrics that add up over the parts of a batch.

Imports engine.compiled, engine.stages, model and comm.
"""
