"""Films that are one input together, such as the views of a study.

Shape suffixes: S shards, N groups, V films of a group.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from xpt.data.index import ShardSet


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The order of a run goes over these instead of over single films."""

    sizes_S: Int64[np.ndarray, "S"]
    """Groups whose first film is in the shard; shards without one are left out."""
    rows_NV: Int64[np.ndarray, "N V"]
    """Rows of each group's films; one with fewer than V repeats its first."""

    def __len__(self) -> int:
        return len(self.rows_NV)


def grouped(shards: ShardSet, rows: list[list[int]]) -> Groups:
    """Groups of the given rows, in the order of their first ones; each group has at least one row."""
    most = max(len(films) for films in rows)
    rows_NV = np.array([films + films[:1] * (most - len(films)) for films in sorted(rows)], dtype=np.int64)
    sizes_S = np.bincount(np.searchsorted(shards.row_starts, rows_NV[:, 0], side="right") - 1)
    return Groups(sizes_S=sizes_S[sizes_S > 0].astype(np.int64), rows_NV=rows_NV)
