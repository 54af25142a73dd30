"""A model's own `train_step`, `test_step` and `predict_step` on replicas.

Imports comm, engine.compiled, engine.loss, engine.stages, engine.weights, model and pipeline.
"""
