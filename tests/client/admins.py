"""Every call to AdminService is tested through both clients: ``admin`` is one after the other."""

import asyncio

import pytest

from scoring_client import AdminClient, AsyncAdminClient, async_push_to_all, push_to_all


class Both:
    """Calls through one client or the other."""

    def __init__(self, kind, runner):
        self.kind, self._runner = kind, runner

    def __call__(self, target, method, *args, **kw):
        if self.kind == "sync":
            with AdminClient(target) as client:
                return getattr(client, method)(*args, **kw)

        async def main():
            async with AsyncAdminClient(target) as client:
                return await getattr(client, method)(*args, **kw)

        return self._runner.run(main())

    def to_all(self, targets, *args, **kw):
        if self.kind == "sync":
            clients = [AdminClient(target) for target in targets]
            try:
                return push_to_all(clients, *args, **kw)
            finally:
                for client in clients:
                    client.close()

        async def main():
            clients = [AsyncAdminClient(target) for target in targets]
            try:
                return await async_push_to_all(clients, *args, **kw)
            finally:
                await asyncio.gather(*(client.close() for client in clients))

        return self._runner.run(main())


@pytest.fixture(params=["sync", "async"])
def admin(request, runner):
    return Both(request.param, runner)
