"""Which layout is fastest: what a plan is, and how one is made, drawn and followed.

Imports comm, engine, formats, launching, model, options, pipeline, planning.costs and
planning.search.
"""
