"""Files of a sharded checkpoint: names, index, shards, boxes of tensors, and whether all is whole.

Imports formats.
"""
