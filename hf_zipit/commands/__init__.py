"""The commands of `hf-zipit`, one module each.

In: arguments and flags from the command line.
Out: text or JSON on stdout, files, an exit code.
Not here: merging or maths. Libraries are imported only when a command runs, which keeps `--help` fast.
"""
