"""This checkout's speed and memory beside another revision's, subject by subject, interleaved on the same machine.

`python -m tests.benchmarks.against REV` runs it. What measures (`measured/`) is this checkout's code, and runs in one long-lived
process for each tree, with that tree's environment and its `finemoe`.
"""
