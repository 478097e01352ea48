"""JSON files of Hugging Face folders."""

from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from poss_export.errors import CheckpointError
from poss_export.files import parse_json


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file; without a file the default, if there is one.

    Raises:
        CheckpointError: it is no file, no JSON or no object.
    """
    if default is not None and not path.is_file():
        return default
    try:
        values: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}); expected a Hugging Face folder: check the path"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, not {shortened(values)}; fetch it again")
    return values
