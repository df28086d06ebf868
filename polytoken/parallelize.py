"""A generator in pieces on several devices, and single weights put together from them (FSDP2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from polytoken.generators.base import Generator


def shard(generator: Generator, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Cut every weight into as many pieces as the mesh has ranks; in place, names stay.

    Each block of trunk and head is put together by itself when it is needed, embeddings and outputs with the whole.
    Blocks are checkpointed and compiled already (``TrunkConfig``), in this order, inside of what is sharded.

    Args:
        generator: whole, and the same on every rank.
        mesh: one-dimensional, the ranks that read different data.
        compute: type of the weights that are put together; None is their own. Gradients are summed in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for block in generator.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "step")
    # in pieces after every forward: what changes weights between two steps (an average in validation) changes pieces
    fully_shard(generator, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for name in generator.forward_methods:
        register_fsdp_forward_method(generator, name)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its pieces, if it is in pieces; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of another one, and in the same pieces; whole, it must be the same on every rank."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = tensor.to(like.device_mesh.device_type)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)
