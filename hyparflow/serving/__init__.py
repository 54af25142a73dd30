"""Generation that fuses requests: they join a running batch, and leave it (Flover).

The packages below: scheduling (who computes when), decoding (one model, one process), ranks
(several), requests (what callers have). Imports comm, engine, formats, launching, model, pipeline,
serving.decoding, serving.ranks, serving.requests and serving.scheduling.
"""
