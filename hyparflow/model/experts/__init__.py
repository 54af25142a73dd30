"""Mixtures of experts: a layer, and other libraries' layers, by the experts that tokens chose.

Imports formats and model.keras_internals.
"""
