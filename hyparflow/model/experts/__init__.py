"""Mixtures of experts: a layer, and other libraries' layers, by the experts that tokens chose.

Also which ones those were, of any model. Imports experts, formats, model.keras_internals and
options.
"""
