"""Tensors that lie on several ranks are gathered on all of them."""

import pytest

from scoring_client import PreconditionFailedError, gather_weights
from tests.client.pushes import SPECS, assert_holds, state
from tests.client.toy_weights import WeightsServer


class Sharded:
    """What a DTensor is to the client; the real one needs a process group."""

    def __init__(self, tensor, log):
        self._tensor, self._log = tensor, log

    def full_tensor(self):
        self._log.append(self._tensor.data_ptr())
        return self._tensor.clone()


def test_sharded_tensors_are_gathered_in_the_order_given_on_every_rank(admin):
    tensors = state()
    ours, theirs = [], []
    with WeightsServer(SPECS) as server:
        admin(
            server.target,
            "push_weights",
            {name: Sharded(tensor, ours) for name, tensor in tensors.items()},
            version=1,
        )
        assert_holds(server, tensors)
        gather_weights({name: Sharded(tensor, theirs) for name, tensor in tensors.items()})
        assert ours == theirs
        assert len(ours) == len(SPECS)
        # And when the server refuses, so that no other rank waits for ever.
        ours.clear()
        with pytest.raises(PreconditionFailedError):
            admin(
                server.target,
                "push_weights",
                {name: Sharded(tensor, ours) for name, tensor in tensors.items()},
                version=1,
            )
        assert ours == theirs


def test_real_dtensors(admin):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

    tensors = state()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = {
            name: DTensor.from_local(t, mesh, [Shard(0) if t.dim() else Replicate()])
            for name, t in tensors.items()
        }
        with WeightsServer(SPECS) as server:
            admin(server.target, "push_weights", sharded, version=1)
            assert_holds(server, tensors)
    finally:
        dist.destroy_process_group()
