"""Who holds which weights, and how they move between ranks.

Imports comm, engine.compiled, model and pipeline.
"""
