"""The commands of `hf-zipit`, one module each.

In: flags, as the terminal gives them.
Out: text or JSON on stdout, files, an exit code.
Not here: no merging and no maths; libraries are imported when a command runs, so that `--help` stays fast.
"""
