"""A Space that shows one merged model. Its id is the Space's variable MODEL, or else the constant below."""

import os

from hf_zipit.app.space import space

MODEL = os.environ.get("MODEL", "user/merged")  # a merge on the Hub, or a folder

demo = space(MODEL)

if __name__ == "__main__":
    demo.launch()
