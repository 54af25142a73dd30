"""The command `hyparflow`: one file for each of its commands.

Imports everything but api.
"""
