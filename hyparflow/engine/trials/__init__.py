"""Trials of a model on a few random rows, which find what does not add up over parts of a batch.

Imports engine, engine.compiled, engine.loss, engine.stages, formats and model.
"""
