"""Tokens that stay at the ranks of their experts, while every rank has the caches of all rows.

Imports comm, engine, model, serving.decoding and serving.scheduling.
"""
