"""Checks what training over ranks needs, and says what to do about what is missing.

Imports comm, formats, launching and model.
"""
