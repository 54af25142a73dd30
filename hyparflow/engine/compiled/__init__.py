"""All that knows the insides of TensorFlow's graphs: compiling, splitting, calling.

Imports model.keras_internals only.
"""
