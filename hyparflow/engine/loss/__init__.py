"""Losses and metrics that add up over the parts of a batch.

Imports comm, engine.compiled and model.
"""
