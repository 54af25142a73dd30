"""What ranks did in the last steps of a training: recorded, written, summed up, drawn.

Imports planning (to draw a plan beside it), pipeline, comm and formats.
"""
