"""Tries a model on a few random rows: what does not add up over the parts of a batch?

Imports engine.compiled, engine.stages, engine.loss and model.
"""
