"""One call of `fit`, `evaluate` or `predict`: the leader runs Keras, other ranks follow.

Imports comm, engine, formats, launching, model, options, pipeline, planning, tracing and
training.data.
"""
