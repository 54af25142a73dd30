"""A model's own `train_step`, `test_step` and `predict_step` on replicas.

Imports the other packages of engine, model and comm.
"""
