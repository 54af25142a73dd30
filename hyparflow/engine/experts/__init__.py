"""Mixtures of experts whose experts lie on several ranks.

Imports comm, engine.compiled and model.
"""
