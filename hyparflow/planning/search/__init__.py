"""Which layouts there are, and what each would take of time and memory.

Imports engine (numbers of chunks), formats, options, pipeline and planning.costs.
"""
