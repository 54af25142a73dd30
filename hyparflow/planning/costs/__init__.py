"""What operations, machine and network cost: measured or estimated.

Imports comm, engine (to time it), formats, launching, model and pipeline.
"""
