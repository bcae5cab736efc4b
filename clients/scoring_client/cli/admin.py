"""Commands that change what a server serves; they need the scope ``admin``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from scoring_client.admin import AdminClient
from scoring_client.cli.options import Common, print_json, saying_what_is_wrong
from scoring_client.errors import InvalidRequestError
from scoring_client.weights.results import (
    ProgressCallback,
    RunningSamples,
    Staging,
    WeightProgress,
    WeightUpdate,
)

weights_app = App(
    name="weights", help="Show the weights that a server answers from, or give it new ones."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Options of every update."""

    base_version: int | None = None
    """Update only if this is the running version, now and at the commit."""
    allow_older_version: Annotated[bool, Parameter(negative="")] = False
    """Take the running version, or an older one, as for going back."""
    weights_digest: str | None = None
    """Digest that the new weights must have."""
    running_samples: RunningSamples = "finish"
    """What becomes of samples that are being drawn."""
    staging: Staging = "auto"
    """Where the new weights are put while the old ones answer."""

    def options(self) -> Any:
        """Return keyword arguments of an update."""
        return {
            "base_version": self.base_version,
            "allow_older_version": self.allow_older_version,
            "weights_digest": self.weights_digest or "",
            "running_samples": self.running_samples,
            "staging": self.staging,
        }


def connect(common: Common) -> AdminClient:
    """Return a client.

    Raises:
        InvalidRequestError: the options make no sense together.
    """
    with saying_what_is_wrong():
        return AdminClient(**common.connection())


@weights_app.default
def show(*, common: Common = Common()) -> None:
    """Show the version, the digest, and the update that is under way."""
    with connect(common) as client:
        info = client.get_weights()
    if common.json:
        print_json(info)
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("model", info.model)
    table.add_row("version", str(info.version))
    table.add_row("digest", info.weights_digest)
    table.add_row("updates", str(info.updates_committed))
    for name, update in (("under way", info.update), ("last", info.last_update)):
        if update is not None:
            table.add_row(name, _sentence(update))
    _console().print(table)


@weights_app.command
def push(
    file: Path,
    /,
    *,
    version: int,
    partial: Annotated[bool, Parameter(negative="")] = False,
    conditions: Conditions = Conditions(),
    common: Common = Common(),
) -> None:
    """Send the tensors of a file and have the server answer from them.

    Parameters
    ----------
    file
        A .safetensors file; reading it takes safetensors and torch.
    version
        Number of the new weights, larger than the running one.
    partial
        Tensors that the file lacks keep their values.
    """
    with connect(common) as client, _progress(common) as on_progress:
        update = client.push_weights(
            _tensors(file),
            version=version,
            partial=partial,
            convert_dtypes=True,
            on_progress=on_progress,
            **conditions.options(),
        )
    _print_update(update, common)


@weights_app.command
def update(
    path: str | None = None,
    /,
    *,
    version: int,
    repository: str | None = None,
    revision: str | None = None,
    conditions: Conditions = Conditions(),
    common: Common = Common(),
) -> None:
    """Have the server read weights itself.

    Parameters
    ----------
    path
        Folder or file on the server, under one of its --weights-root.
    version
        Number of the new weights, larger than the running one.
    repository
        Or a model on the Hub, one of the server's --weights-hub.
    revision
        Its branch, tag or commit.
    """
    with connect(common) as client, _progress(common) as on_progress:
        done = client.update_weights(
            path=path,
            repository=repository,
            revision=revision,
            version=version,
            on_progress=on_progress,
            **conditions.options(),
        )
    _print_update(done, common)


@weights_app.command
def abort(update_id: str = "", /, *, common: Common = Common()) -> None:
    """Give up an update that is not committed yet, whoever began it; the old weights stay.

    Parameters
    ----------
    update_id
        Its name, as `scoring-client weights` shows it; by default whichever is under way.
    """
    with connect(common) as client:
        ended = client.abort_update(update_id)
    if common.json:
        print_json(ended)
    else:
        _console().print(_sentence(ended))


def flush_cache(*, common: Common = Common()) -> None:
    """Forget cached prompts; no answer changes by it."""
    with connect(common) as client:
        pages = client.flush_cache()
    if common.json:
        print_json({"pages_freed": pages})
    else:
        _console().print(f"{pages} pages freed")


def drain(*, common: Common = Common()) -> None:
    """Refuse new calls until `resume`, and wait for those that run."""

    def on_progress(calls_left: int) -> None:
        if not common.json:
            _console().print(f"{calls_left} calls left")

    with connect(common) as client:
        client.drain(timeout=common.timeout, on_progress=on_progress)
    if common.json:
        print_json({"drained": True})


def resume(*, common: Common = Common()) -> None:
    """Take calls again after `drain`."""
    with connect(common) as client:
        client.resume()
    if common.json:
        print_json({"resumed": True})


def register(app: App) -> None:
    """Add the commands."""
    app.command(weights_app)
    for command in (flush_cache, drain, resume):
        app.command(command)


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open

        opened = safe_open(file, framework="pt")
    except ImportError as error:
        raise InvalidRequestError(f"reading {file} takes safetensors and torch: {error}") from error
    except SafetensorError as error:
        raise InvalidRequestError(f"{file} is no .safetensors file: {error}") from error
    with opened as tensors:
        for name in sorted(tensors.keys()):
            yield name, tensors.get_tensor(name)


@contextmanager
def _progress(common: Common) -> Iterator[ProgressCallback]:
    """Show a bar on stderr while an update runs, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TransferSpeedColumn(), console=console, transient=True, disable=common.json
    ) as bar:
        task = bar.add_task("sending", total=None)

        def on_progress(progress: WeightProgress) -> None:
            bar.update(
                task,
                description=progress.phase,
                completed=progress.bytes_done,
                total=progress.bytes_total or None,
            )

        yield on_progress


def _print_update(update: WeightUpdate, common: Common) -> None:
    if common.json:
        print_json(update)
    else:
        _console().print(f"version {update.version} answers, digest {update.weights_digest}")


def _sentence(update: WeightUpdate) -> str:
    said = f"version {update.version}, {update.phase}"
    if update.phase not in ("committed", "failed", "aborted"):
        said += f" (update {update.update_id})"
    if update.phase == "receiving" and update.bytes_total:
        said += f", {update.bytes_received / update.bytes_total:.0%}"
    return f"{said}: {update.error}" if update.error else said


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
