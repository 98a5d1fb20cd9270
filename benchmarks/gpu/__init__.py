"""What gpu.sh runs on a machine with a GPU: a build, tests, benchmarks, profiler and checkers, in 9 minutes.

`python -m gpu` is the program. Until the build it needs the standard library alone, because its first work is
to say what else is missing.
"""
