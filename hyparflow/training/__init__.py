"""One call of `fit`, `evaluate` or `predict`: the leader runs Keras, other ranks follow.

Imports everything but api and cli.
"""
