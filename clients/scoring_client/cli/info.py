"""``scoring-client info``: what the server says of its model."""

from scoring_client.cli.console import new_console
from scoring_client.cli.jsonable import jsonable
from scoring_client.cli.options import Common, connect, print_json
from scoring_client.cli.render import info_table


def info(*, common: Common = Common()) -> None:
    """Show what the server says of its model: limits, digests, versions."""
    with connect(common) as client:
        models = client.list_models()
        said = client.model_info()
    if common.json:
        print_json({**jsonable(said), "models": models})
        return
    new_console().print(info_table(said, models))
