"""What ranks did in the last steps of a training: recorded, written, summed up, drawn.

Imports comm, formats, pipeline and planning (to draw a plan beside the trace).
"""
