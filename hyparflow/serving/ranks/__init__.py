"""Who computes windows: one process, or ranks with partitions, shards of tensors and replicas.

Imports comm, engine, experts, formats, model, pipeline, serving.coherent, serving.decoding and
serving.scheduling.
"""
