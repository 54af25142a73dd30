"""Tokens that stay at the ranks of their experts, while every rank has the caches of all rows.

Imports comm, engine.compiled, engine.experts, model and serving.
"""
