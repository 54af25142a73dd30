"""Language models that take tokens at the positions of their rows, with caches.

Imports formats, model and serving.scheduling.
"""
