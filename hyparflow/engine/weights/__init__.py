"""Who holds which weights, and how they move between ranks.

Imports model, pipeline and comm.
"""
