"""Faster kernels in place of what Keras's layers write out: patterns of operations, and rewrites.

Imports comm, engine.compiled and model.
"""
