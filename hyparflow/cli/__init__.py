"""The command `hyparflow`: one file for each of its commands.

Imports checkpoint, comm, experts, formats, launching, model, options, planning, serving and
tracing.
"""
