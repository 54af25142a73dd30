"""Where rows come from: arrays that every rank has, and streams that one rank reads.

Imports model.
"""
