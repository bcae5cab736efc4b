"""The digest that a push tells of its tensors."""

import pytest

from scoring_client import InvalidRequestError
from tests.client.pushes import SPECS, raw, state
from tests.client.toy_weights import WeightsServer
from tests.contract_digest import contract_digest


@pytest.mark.parametrize("form", [dict, lambda tensors: iter(tensors.items())])
@pytest.mark.parametrize("absent", [None, "lm_head.weight", "model.embed_tokens.weight"])
def test_the_digest_covers_tied_tensors_once_whatever_name_they_come_under(admin, absent, form):
    tensors = state()
    weights = {name: tensor for name, tensor in tensors.items() if name != absent}
    with WeightsServer(SPECS) as server:
        in_order = dict(sorted(weights.items()))
        admin(server.target, "push_weights", form(in_order), version=1, digest=True)
    expected = contract_digest(
        {
            name: (dtype, shape, raw(tensors[name]))
            for name, (dtype, shape, tied) in SPECS.items()
            if not tied
        }
    )
    assert server.requests[-1].commit.weights_digest == expected
    assert server.version == 1


def test_a_digest_needs_sorted_names_of_all_tensors(admin):
    with WeightsServer(SPECS) as server:
        backwards = ((name, tensor) for name, tensor in sorted(state().items(), reverse=True))
        with pytest.raises(InvalidRequestError, match="order of the model's own names"):
            admin(server.target, "push_weights", backwards, version=1, digest=True)
        with pytest.raises(InvalidRequestError, match="digest or partial"):
            admin(server.target, "push_weights", {}, version=1, digest=True, partial=True)
