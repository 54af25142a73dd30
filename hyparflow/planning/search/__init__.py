"""Which layouts there are, and what each would take of time and memory.

Imports engine (what chunks need), formats, options, pipeline and planning.costs.
"""
