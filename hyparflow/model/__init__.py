"""The user's Keras model as operations: its graph, masks, cuts, fingerprint, how it is saved.

Imports comm, formats, model.keras_internals, options and pipeline.
"""
