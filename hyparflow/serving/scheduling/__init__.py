"""Which requests compute together, and for how long. Pure integers.

Imports nothing of hyparflow.
"""
