"""The user's Keras model as operations: its graph, masks, cuts, fingerprint, how it is saved.

Imports options, pipeline, comm and formats.
"""
