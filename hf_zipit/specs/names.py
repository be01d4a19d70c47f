"""Names of spaces while a spec is expanded: which names mean one space, and what a name means inside a block."""

from dataclasses import dataclass

from hf_zipit.specs.grammar import FIXED_AXES, Expression


class Names:
    """Union-find over names. The representative is the name of the lowest rank, then the one added first."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.rank: dict[str, tuple[int, int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.parent

    def add(self, name: str, rank: int = 0) -> str:
        """Add a name unless it is known, and return it."""
        if name not in self.parent:
            self.parent[name] = name
            self.rank[name] = (rank, len(self.rank))
        return name

    def demote(self, name: str) -> None:
        """Let a name represent a space only if the space has no other name."""
        self.rank[self.add(name)] = (2, 0)

    def find(self, name: str) -> str:
        """The representative of a name; an unknown name represents itself."""
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def union(self, a: str, b: str) -> None:
        """Make two names mean the same space."""
        low, high = sorted((self.find(self.add(a)), self.find(self.add(b))), key=self.rank.__getitem__)
        self.parent[high] = low


@dataclass(frozen=True)
class Scope:
    """Resolves the names of one block.

    Attributes:
        block: Path of the block's module; `""` at the top level.
        stream: Full name of the space that enters the block, which the block calls `in`.
        shared: Names that occur at the top level and mean the same space in every block.
    """

    block: str
    stream: str
    shared: frozenset[str]

    def __call__(self, name: str) -> str:
        """The full name of a space."""
        if not self.block or name in self.shared or name in FIXED_AXES:
            return name
        return self.stream if name == "in" else f"{self.block}.{name}"

    def path(self, target: str) -> str:
        """The full path of a module or parameter; `.` is the block itself."""
        if not self.block:
            return target
        return self.block if target == "." else f"{self.block}.{target}"

    def single(self, expression: Expression) -> str | None:
        """The full name of the one space in an expression; `None` for a fixed axis or a concatenation."""
        units = [name for name in expression[0] if name != "."] if len(expression) == 1 else []
        name = self(units[-1]) if units else "."  # `in` may be the image
        return None if name in FIXED_AXES else name
