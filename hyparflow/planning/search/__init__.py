"""Which layouts there are, and what each would take of time and memory.

Imports formats, options, pipeline and planning.costs.
"""
