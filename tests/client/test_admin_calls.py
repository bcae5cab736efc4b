"""What an admin client asks beside pushes: updates from files, versions, the cache, drains."""

import pytest

from scoring_client import InvalidRequestError, NotFoundError
from tests.client.pushes import SPECS
from tests.client.toy_weights import WeightsServer


def test_update_from_files(admin):
    seen = []
    with WeightsServer(SPECS) as server:
        update = admin(
            server.target,
            "update_weights",
            version=2,
            path="/models/new",
            running_samples="continue",
            staging="in_place",
            on_progress=seen.append,
        )
        assert update.phase == "committed"
        assert [progress.phase for progress in seen] == ["receiving", "staging", "committed"]
        request = server.requests[0]
        assert request.path == "/models/new"
        assert request.options.running_samples == 2
        assert request.options.staging == 3
        admin(server.target, "update_weights", version=3, repository="a/b", revision="main")
        assert server.requests[1].hub.revision == "main"
        with pytest.raises(NotFoundError):
            admin(server.target, "update_weights", version=4, path="/nowhere")
        for wrong in ({}, {"path": "/a", "repository": "b"}, {"path": "/a", "revision": "c"}):
            with pytest.raises(InvalidRequestError):
                admin(server.target, "update_weights", version=4, **wrong)


def test_the_other_calls(admin):
    with WeightsServer(SPECS, version=7) as server:
        info = admin(server.target, "get_weights", list_tensors=True)
        assert (info.version, info.update) == (7, None)
        assert [tensor.name for tensor in info.tensors] == sorted(SPECS)
        by_name = {tensor.name: tensor for tensor in info.tensors}
        assert by_name["lm_head.weight"].tied_to == "model.embed_tokens.weight"
        assert by_name["model.layers.0.weight"].dtype == "bfloat16"
        assert admin(server.target, "flush_cache") == 12
        with pytest.raises(NotFoundError):
            admin(server.target, "abort_update", "u7")
        admin(server.target, "resume")
        assert admin(server.target, "wait_for_version", 7).version == 7
        with pytest.raises(TimeoutError):
            admin(server.target, "wait_for_version", 8, timeout=0.05)
    # A server that is being started again will have its version, once somebody pushes it.
    with pytest.raises(TimeoutError, match=r"version 8 did not come within 0\.2 s: "):
        admin(server.target, "wait_for_version", 8, timeout=0.2)


def test_drain_is_sent_by_the_call_and_waits(admin):
    told = []
    with WeightsServer(SPECS) as server:
        assert admin(server.target, "drain", on_progress=told.append) is None
        assert told == [2, 0]
        admin(server.target, "drain")
        assert server.drains == 2
