"""JAX's devices as one: the arrays of a training on all devices of all processes that take part.

In: variables and photos of this process. Out: the same as arrays of the whole training, from which
a compiled function computes as if there were one device: the mean of a batch is that of all its
photos, wherever they are. On one device all this is what JAX does anyway. On TensorFlow and PyTorch
there is one process, and the arrays are left to `lockstep`.

`fieldmark train PHOTOS --workers N` is what several processes are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fieldmark import backend


class Layout(NamedTuple):
    """Where arrays lie: JAX's shardings."""

    whole: Any  # the same on every device
    rows: Any  # each device has its rows


@lru_cache
def layout(photos: int, *, alone: bool = False) -> Layout:
    """Return how a batch lies on the devices, of which this process has so many photos.

    As many devices of each process are taken as share its photos equally. `alone` is for what a
    process computes without the others.
    """
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    each = sharing(photos, len(jax.local_devices()))
    numbers = [jax.process_index()] if alone else range(jax.process_count())
    taken = [
        [device for device in jax.devices() if device.process_index == number][:each]
        for number in numbers
    ]
    mesh = Mesh(np.array(taken).ravel(), ("photos",))
    return Layout(
        whole=NamedSharding(mesh, PartitionSpec()),
        rows=NamedSharding(mesh, PartitionSpec("photos")),
    )


def sharing(photos: int, most: int) -> int:
    """Return how many can share so many photos equally, at most `most`."""
    return next(count for count in range(most, 0, -1) if photos % count == 0)


def processes() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many train together."""
    if backend.name != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each value over all processes, in their order."""
    _, count = processes()
    if count == 1:
        return values
    from jax.experimental import multihost_utils

    # As bits: JAX would make float32 of them.
    gathered = multihost_utils.process_allgather(values.view(np.uint32))
    each = np.ascontiguousarray(gathered).view(np.float64).reshape(count, -1)
    summed: NDArray[np.float64] = each.sum(axis=0)
    return summed


def values(variables: Iterable[Any], where: Any) -> list[Any]:
    """Return the values of Keras' variables as arrays that lie whole on each device of `where`.

    Every process must have the same values.
    """
    return [_moved(variable.value, where) for variable in variables]


def rows(share: NDArray[Any], where: Any) -> Any:
    """Return the array, (n, ...), of which this process has a share of the rows."""
    import jax

    return jax.make_array_from_process_local_data(where, share)


def assign(variables: Iterable[Any], found: Iterable[Any]) -> None:
    """Give variables their new values."""
    for variable, value in zip(variables, found, strict=True):
        variable.assign(value)


def _moved(value: Any, where: Any) -> Any:
    import jax

    if value.sharding == where:
        return value
    if where.is_fully_addressable:  # for this process alone
        return jax.device_put(value.addressable_data(0), where)
    return jax.make_array_from_process_local_data(where, np.asarray(value))
