"""HTTP in front of a server: the part of OpenAI's interface that completes texts and chats.

It needs the extra "serve". Imports comm, serving, serving.decoding, serving.requests and
serving.scheduling.
"""
