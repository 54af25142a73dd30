"""Gradients summed over micro-batches and over replicas.

Imports engine.compiled, model and comm.
"""
