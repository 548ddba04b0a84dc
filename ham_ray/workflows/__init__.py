"""One module a job: its options, which are its command line, and what it does.

At their top these modules import only what a command line needs, so that `--help` is quick and the supervisor small;
what `check` and `run` need they import themselves.
"""
