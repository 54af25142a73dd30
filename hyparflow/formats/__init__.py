"""How things are written for people and files: text, tables, sizes, JSON records, whole files.

Imports nothing of hyparflow.
"""
