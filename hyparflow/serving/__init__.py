"""Generation that fuses requests: they join a running batch, and leave it (Flover).

Imports model.
"""
