"""The command `hyparflow`: one file for each of its commands.

Imports checkpoint, comm, formats, launching, model, options, planning, serving and tracing.
"""
