"""Mixtures of experts: a layer, and what it computes by the experts that tokens chose alone.

Imports formats.
"""
