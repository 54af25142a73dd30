"""One call of `fit`, `evaluate` or `predict`: the leader runs Keras, other ranks follow.

Imports checkpoint, comm, engine, formats, launching, model, options, pipeline, planning, tracing,
training.checkpoints and training.data.
"""
