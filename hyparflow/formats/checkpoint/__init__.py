"""The files of checkpoints: tensors by ranks, and an index that makes them one.

Imports formats.
"""
