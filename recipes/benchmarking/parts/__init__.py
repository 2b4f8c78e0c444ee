"""The parts of the library that the benchmark measures alone: a section of benchmark.json each, made by its `measure`.

Times are in seconds, memory in bytes.
"""
