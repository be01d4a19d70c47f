"""Files and folders that are written completely or not at all, and documents that are read without surprises.

In: a path, and a function or block that writes; or a YAML document.
Out: the file or folder, with the permissions that any other program would give it; or plain values.
Not here: what is written, and what the values mean.
"""
