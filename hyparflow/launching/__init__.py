"""Starts ranks: the launcher's command, a function on fresh ranks, cores, GPUs, memory.

Imports comm, formats and model (to send models).
"""
