"""Checkpoints of which each rank writes and reads its share.

Imports comm, engine, formats, launching, model and pipeline.
"""
