"""Pure: partitions, schedules, the lowered list of a step, its proof, its simulation.

Imports nothing of hyparflow; nor MPI, Keras or TensorFlow.
"""
