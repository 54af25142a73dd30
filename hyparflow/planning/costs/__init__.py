"""What operations, machine and network cost: measured or estimated.

Imports engine (to time it), model, launching, comm and formats.
"""
