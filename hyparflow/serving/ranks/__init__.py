"""Serving over ranks: partitions, shards of tensors, replicas.

Imports comm, engine, model, pipeline and serving.
"""
