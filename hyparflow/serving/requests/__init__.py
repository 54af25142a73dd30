"""What callers have of requests: prompts, text as it comes, statistics.

Imports formats and serving.scheduling.
"""
