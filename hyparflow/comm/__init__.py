"""Ranks that talk to each other: communicators, deadlines, notices of failure.

Imports formats; `world.py` alone imports mpi4py.
"""
