"""What ranks did in the last steps of a training: recorded, written, summed up, drawn.

Imports comm, engine (what sequences are counted by), formats, pipeline and planning (to draw a plan
beside the trace).
"""
