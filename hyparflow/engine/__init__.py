"""One training step on one rank: it executes the lowered list of its partition.

Imports model, options, pipeline, comm and formats.
"""
