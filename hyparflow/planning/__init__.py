"""Which layout is fastest: what a plan is, and how one is made, drawn and followed.

Imports engine, model, launching, pipeline, comm and formats.
"""
