"""Meshes, and where every array of a run lies on one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.model.axes import MESH_AXES, partition_spec
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import abstract_params, check_mesh, partition_specs


def make_mesh(sizes: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes "data", "fsdp" and "tensor" of these sizes; one size may be -1, meaning the rest.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.

    >>> dict(make_mesh((1, -1, 1), jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(sizes) != len(MESH_AXES):
        raise ValueError(f"mesh {tuple(sizes)} must give a size to each of {MESH_AXES}")
    known = math.prod(size for size in sizes if size != -1)
    if list(sizes).count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {tuple(sizes)} must hold positive sizes, one of which may be -1")
    if known == 0 or len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ValueError(f"mesh {tuple(sizes)} over {MESH_AXES} does not use exactly the {len(devices)} devices "
                         f"at hand; change mesh (one size may be -1, meaning the rest)")
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises ValueError unless every micro-batch spreads evenly over the devices that share the batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * microbatches):
        raise ValueError(f"batch_size ({batch_size}) must be a multiple of data x fsdp x microbatches "
                         f"({mesh.shape['data']} x {mesh.shape['fsdp']} x {microbatches}); change batch_size, mesh or "
                         f"microbatches")


def state_shardings(state: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """A NamedSharding for every array of a TrainState (or any tree that holds copies of the parameter tree).

    An array whose path ends like a parameter's and has its shape lies as that parameter does (weights, Adam's
    moments, the moving average); everything else is replicated.

    Args:
      state: tree of arrays or `jax.ShapeDtypeStruct`.
      config: of the model.
      mesh: from `make_mesh`.

    Raises:
      ValueError: when a parameter cannot be split evenly.
    """
    check_mesh(config, dict(mesh.shape))
    table = {_names(path): (leaf.shape, spec) for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(abstract_params(config)),
        jax.tree.leaves(partition_specs(config, mesh.axis_names), is_leaf=lambda x: isinstance(x, PartitionSpec)),
        strict=True)}
    longest = max(map(len, table))

    def place(path, leaf) -> NamedSharding:
        names = _names(path)
        for length in range(min(longest, len(names)), 0, -1):
            shape, spec = table.get(names[-length:], (None, None))
            if shape == tuple(leaf.shape):
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())
    return jax.tree_util.tree_map_with_path(place, state)


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", "")))) for entry in path)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over "data" and "fsdp", positions whole."""
    return NamedSharding(mesh, partition_spec(("batch", None), mesh.axis_names))


def host_rows(batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """(host, hosts) as the loader takes them: which slice of the global batch this process must read.

    Processes that hold copies of the same rows (tensor parallelism across hosts) read the same slice.
    """
    held = {(index[0].start or 0, index[0].stop or batch_size)
            for index in batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1)).values()}
    first, last = min(start for start, _ in held), max(stop for _, stop in held)
    size = last - first
    if batch_size % size or first % size or sum(stop - start for start, stop in held) != size:
        raise ValueError(f"this process's devices hold rows {sorted(held)} of {batch_size}, which are not one even "
                         f"slice; order the mesh so that a process's devices are neighbours")
    return first // size, batch_size // size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows (numpy, as the loader gives them) -> global arrays spread over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
