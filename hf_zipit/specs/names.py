"""Names of spaces while a spec is bound: which are one, and what a name means inside a block."""

from dataclasses import dataclass

from hf_zipit.specs.grammar import FIXED


class Names:
    """Union-find over names; the representative is the lowest-ranked, then the earliest name."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.rank: dict[str, tuple[int, int]] = {}

    def add(self, name: str, rank: int = 0) -> str:
        """Make sure a name exists."""
        if name not in self.parent:
            self.parent[name] = name
            self.rank[name] = (rank, len(self.rank))
        return name

    def find(self, name: str) -> str:
        """The representative of a name."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def union(self, a: str, b: str) -> None:
        """Make two names one."""
        low, high = sorted((self.find(self.add(a)), self.find(self.add(b))), key=self.rank.__getitem__)
        self.parent[high] = low


@dataclass(frozen=True)
class Scope:
    """Resolves the names of one block: `in`, `out`, top-level names, and names private to the block."""

    block: str
    stream: str
    shared: frozenset[str]

    def __call__(self, name: str) -> str:
        """The full name of a space."""
        if not self.block or name in self.shared or name in FIXED:
            return name
        return self.stream if name == "in" else f"{self.block}.{name}"

    def path(self, target: str) -> str:
        """The full path of a module or parameter; `.` is the block itself."""
        if not self.block:
            return target
        return self.block if target == "." else f"{self.block}.{target}"
