"""Gradients summed over micro-batches and over replicas.

Imports comm, engine.compiled, model and pipeline.
"""
