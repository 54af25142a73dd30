"""Checks what training over ranks needs, and says what to do about what is missing.

Imports the rest of launching, comm and formats.
"""
