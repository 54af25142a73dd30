"""Starts ranks: the launcher's command, a function on fresh ranks, cores, GPUs.

Imports model (to send models), comm and formats.
"""
