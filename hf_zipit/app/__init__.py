"""The app in the browser: choose models and images, diagnose, merge, see the result, try it, take it away.

In: what a user enters on a page.
Out: the same merges, texts and pictures as those of the commands, on that page; one piece of work at a time.
Not here: how anything is diagnosed, merged, written or uploaded; `page`, `panels` and `space` are the only files that
know gradio.
"""
