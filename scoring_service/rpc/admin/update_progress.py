"""The progress of an update, as its caller is sent it while it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable

from scoring_client.proto.weights_pb2 import WeightUpdateStatus
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.weights.status import Phase
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.rpc.admin.weight_messages import status_message

STATUS_SECONDS = 5.0
"""How often an update, or a drain, tells how far it is."""

_LOOK_SECONDS = 0.1
"""How often it is looked whether there is something to tell."""


async def report_progress(
    update: WeightUpdate, work: Awaitable[None]
) -> AsyncGenerator[WeightUpdateStatus, None]:
    """How far an update is, now and then, while the work goes on.

    Whatever ends this before the commit ends the update.

    Raises:
        ServiceError: why the update failed.
    """
    task = asyncio.ensure_future(work)
    last: tuple[Phase, float] | None = None
    try:
        while not task.done() and not update.is_over:
            now = time.monotonic()
            if last is None or last[0] != update.status.phase or now - last[1] >= STATUS_SECONDS:
                last = update.status.phase, now
                yield status_message(update.look())
            await asyncio.wait(
                {task, update.over}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        if update.fault is not None:
            raise ServiceError(update.fault)
        await task
        yield status_message(update.look())
    except ServiceError as error:
        update.give_up(error.fault)
        raise
    except Exception:
        message = "a bug in the server; its log has the request id of this update"
        update.give_up(Fault(Reason.INTERNAL_ERROR, message))
        raise
    except BaseException:  # its task was cancelled, or is read no further
        update.give_up(Fault(Reason.UPDATE_ABORTED, "its caller left"))
        raise
    finally:
        task.cancel()
