"""The command `scoring-service`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Env, Json, Toml, Yaml

from scoring_service import __version__
from scoring_service.config import ENV_PREFIX, ServeConfig, check_ranges
from scoring_service.serve import serve as run_server

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

_ENVIRONMENT = Env(ENV_PREFIX, command=False)


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

    Args:
        model: Hub id, folder, or .gguf file. Default: the packaged tiny model.
        config: settings.
    """
    return asyncio.run(run_server(model, config or ServeConfig()))


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
        app.config = [_ENVIRONMENT, file_format(config, use_commands_as_keys=False)]
    result = app(tokens)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point."""
    sys.exit(app.meta())


if __name__ == "__main__":
    main()
