"""Checkpoints of a running `fit`: when they are saved, and how it goes on from one.

Imports checkpoint, comm, engine, formats, launching and model.
"""
