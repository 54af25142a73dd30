"""Generation that fuses requests: they join a running batch, and leave it (Flover).

Who computes when, one model in one process, tokens that stay at experts, ranks, and requests.
Imports comm, engine, formats, launching, model, pipeline, planning, serving.coherent,
serving.decoding, serving.ranks, serving.requests and serving.scheduling.
"""
