"""Every use of what Keras does not make public, with the reason beside it.

Imports nothing of hyparflow; everything else uses the public API of Keras 3.
"""
