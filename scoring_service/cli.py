"""The command `scoring-service`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env, Json, Toml, Yaml

from scoring_service import __version__
from scoring_service.config import ENV_PREFIX, ServeConfig, check_ranges
from scoring_service.ending_signals import end_at_once
from scoring_service.plan.command import PlanConfig, plan_text
from scoring_service.rpc.listening import bracketed
from scoring_service.rpc.probe import serving_status
from scoring_service.serve import serve as run_server
from scoring_service.unknown_variables import warnings_of

app = App(
    name="scoring-service",
    help="Scores token sequences under a language model, over gRPC.",
    version=__version__,
)

_FILE_FORMATS: dict[str, type[Toml | Yaml | Json]] = {
    ".toml": Toml,
    ".yaml": Yaml,
    ".yml": Yaml,
    ".json": Json,
}

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""Addresses that stand for all of a machine's -> one of them."""

_ENVIRONMENT = Env(ENV_PREFIX, command=False)

_VARIABLES = {
    f"{ENV_PREFIX}{name.upper()}"
    for name in (
        *(field.name for settings in (ServeConfig, PlanConfig) for field in fields(settings)),
        *("model", "config", "alive", "timeout"),
        # Of scoring-client, and of this repository's Makefile.
        *("target", "token", "tls", "service_bin"),
    )
}
"""What commands read from the environment."""


def _in_range(_type: object, config: ServeConfig | None) -> None:
    if config is not None:
        check_ranges(config)


@app.command
def serve(
    model: str | None = None,
    *,
    config: Annotated[ServeConfig | None, Parameter(name="*", validator=_in_range)] = None,
) -> int:
    """Serve a model.

    Every flag can also be set in the environment (SCORING_MAX_MODEL_LEN for --max-model-len) or
    in a file (--config; max_model_len). A flag wins over the environment, that over the file.
    SCORING_ variables that are no settings are warned of.

    Args:
        model: Hub id, folder, or .gguf file. Default: the packaged tiny model.
        config: settings.
    """
    for warning in warnings_of(os.environ, _VARIABLES):
        print(f"warning: {warning}", file=sys.stderr)
    return asyncio.run(run_server(model, config or ServeConfig()))


@app.command
def health(
    *,
    alive: Annotated[bool, Parameter(negative="")] = False,
    timeout: float = 5.0,
    model: Annotated[str | None, Parameter(show=False)] = None,
    config: Annotated[ServeConfig | None, Parameter(name="*", show=False)] = None,
) -> int:
    """Ask the server of this machine whether it is ready; exit 0 if so, else 1.

    It takes the settings of `serve`, from flags, environment and file alike, and asks on their
    --health-port, or on their --port where that knows no TLS.

    Args:
        alive: whether it is alive, which it is while the model loads, too.
        timeout: seconds to wait for an answer.
        model: not used; a settings file may name one.
        config: settings.
    """
    settings = config or ServeConfig()
    port = settings.health_port or settings.port
    if settings.health_port is None and settings.tls_certificate is not None:
        print("with TLS, health is asked on a --health-port, and there is none", file=sys.stderr)
        return 2
    host = bracketed(settings.host)
    host = _LOOPBACK.get(host, host)
    try:
        status = serving_status(f"{host}:{port}", alive=alive, timeout=timeout)
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return 1
    print(status)
    return 0 if status == "SERVING" else 1


@app.command
def plan(
    model: str | None = None,
    *,
    config: Annotated[PlanConfig | None, Parameter(name="*")] = None,
) -> int:
    """Size a deployment: memory, rates, replicas and flags, from the model and the traffic.

    Args:
        model: Folder, config.json, or Hub id. Default: the packaged tiny model.
        config: settings.
    """
    try:
        print(plan_text(model, config or PlanConfig()))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"the model's config.json lacks {error}", file=sys.stderr)
        return 2
    return 0


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(env_var=f"{ENV_PREFIX}CONFIG")] = None,
) -> int:
    """Reads the settings file, then runs the command.

    Args:
        tokens: the command.
        config: settings file, .toml, .yaml or .json.
    """
    app.config = [_ENVIRONMENT]
    if config is not None:
        file_format = _FILE_FORMATS.get(config.suffix)
        if file_format is None or not config.is_file():
            known = ", ".join(_FILE_FORMATS)
            print(f"--config {config}: no such file, or none of {known}", file=sys.stderr)
            return 2
        settings = file_format(config, use_commands_as_keys=False)
        try:
            settings.config  # noqa: B018 - read here, since the library's own words name no file
        except CycloptsError as error:
            print(f"--config {config}: {error.__cause__ or error}", file=sys.stderr)
            return 2
        app.config = [_ENVIRONMENT, settings]
    result = app(tokens)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, end_at_once)
    sys.exit(app.meta())


if __name__ == "__main__":
    main()
