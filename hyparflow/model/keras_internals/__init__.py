"""Every use of what Keras does not make public, with the reason beside it.

Imports formats; everything else of hyparflow uses the public API of Keras 3.
"""
