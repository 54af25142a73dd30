"""How things are written for people and files: text, tables, JSON, whole files, checkpoints.

Imports nothing of hyparflow.
"""
