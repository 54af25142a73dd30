"""Ranks that talk to each other: communicators, deadlines, notices of failure.

Imports nothing of hyparflow; `world.py` alone imports mpi4py.
"""
