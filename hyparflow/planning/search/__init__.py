"""Which layouts there are, and what each would take of time and memory.

Imports planning.costs, pipeline and formats.
"""
