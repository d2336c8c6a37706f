"""Logical axes, the one rule table that maps them to mesh axes, and `constrain`: all the model knows of a mesh.

Every array dimension has a logical name ("embed", "heads", ...). RULES says over which mesh axes a name is
split. The model and the library never see the mesh itself; `constrain` reads the one that the caller set with
`jax.set_mesh`, and does nothing when there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axes that split it. A batch is split over "data" and "fsdp" alike (an fsdp device holds a
# part of the weights and works on examples of its own); "tensor" splits the work of one example.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def partition_spec(axes: Sequence[str | None], mesh_axes: Sequence[str] = MESH_AXES) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical axes, on a mesh with `mesh_axes`.

    >>> tuple(partition_spec(("batch", None, "heads")))
    (('data', 'fsdp'), None, 'tensor')
    """
    entries: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        names = tuple(name for name in RULES.get(axis, ()) if name in mesh_axes) if axis else ()
        entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks that `x` be laid out over the current mesh by its logical axes; without a mesh, returns `x`.

    Args:
      x: any array with `len(axes)` dimensions.
      axes: a logical axis per dimension; None is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, mesh.axis_names))
