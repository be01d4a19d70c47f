"""`python -m hf_zipit`, and `accelerate launch -m hf_zipit` for many processes."""

from hf_zipit.cli import run

if __name__ == "__main__":
    run()
