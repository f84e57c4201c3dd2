"""A fuzz of every file that is read: only our errors, within a limit of time and memory.

`mutations` breaks files, `targets` say which and what reads them, `worker` runs cases in a process with limits, and
`campaign` starts workers and counts. One case again: `python -m tests.fuzz.worker TARGET NUMBER`.
"""
