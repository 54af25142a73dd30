"""Mixtures of experts: what routers chose, and which rank holds which expert.

Pure NumPy and SciPy. Imports formats.
"""
