"""`Match`, under the name by which matching is used from outside; it is defined where matches are applied."""

from hf_zipit.transform.match import Match

__all__ = ["Match"]
