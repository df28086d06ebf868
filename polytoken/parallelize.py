"""Activation checkpointing, compilation and FSDP2 sharding of a generator, and gathering of sharded tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from polytoken.generators.base import Generator


def parallelize(generator: Generator, mesh: DeviceMesh | None = None, compute: torch.dtype | None = None) -> None:
    """Checkpoint, compile and shard a generator, in this order and in place; parameter names do not change.

    Args:
        generator: connected, and the same on every rank.
        mesh: one-dimensional, the ranks that read different data; None does not shard.
        compute: type of the gathered weights; None is their own. Gradients are summed in float32.
    """
    blocks = [*generator.blocks()]
    for block in blocks if generator.checkpointing else ():
        block.checkpointing = True  # type: ignore[assignment]
    for block in blocks if generator.compile_blocks else ():
        # equal blocks share a graph; another one for each shape, since symbolic shapes make slower kernels
        block.compile(fullgraph=True, dynamic=False)
        block.compiled = True  # type: ignore[assignment]
    if mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        if hasattr(block, "step"):
            register_fsdp_forward_method(block, "step")
    # Latents and times enter in float32. Resharded after every forward, since what changes weights between two steps
    # (EMA in validation) changes shards.
    policy = replace(policy, cast_forward_inputs=False)
    fully_shard(generator, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for name in generator.forward_methods:
        register_fsdp_forward_method(generator, name)


def shard(module: nn.Module, mesh: DeviceMesh | None, compute: torch.dtype | None) -> None:
    """Shard one module that is called as a whole, in place; arguments as for :func:`parallelize`."""
    if mesh is not None:
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32))


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered if it is sharded; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor on the device of another one and sharded like it; every rank passes the same whole tensor."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = tensor.to(like.device_mesh.device_type)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)
