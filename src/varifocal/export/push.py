"""Put an export on a hub, by huggingface_hub and the user's own token."""

from __future__ import annotations

from pathlib import Path

from varifocal.errors import ModelError
from varifocal.export.exporting import PARITY, read_parity


def push(directory: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload an artifact that passed the parity gate.

    Args:
        directory: as `export` wrote it, with its routes inside or alone.
        repo_id: `owner/name`; made where it is not there.
        private: of a repository that is made now.

    Returns:
        The repository's address.

    Raises:
        RunError: the folder is no export.
        ModelError: it did not pass the gate, or the hub refuses.
    """
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    routes = [part for part in sorted(directory.iterdir()) if (part / PARITY).is_file()]
    for part in routes or [directory]:
        if not read_parity(part)["passed"]:
            raise ModelError(f"{part} did not pass the parity gate, so it is not pushed")
    try:
        create_repo(repo_id, private=private, exist_ok=True)
        told = upload_folder(
            repo_id=repo_id, folder_path=directory, commit_message="varifocal export"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"the hub did not take {directory} as {repo_id}: {str(error).splitlines()[0]}; log in "
            "with `hf auth login`, and name a repository of your own"
        ) from error
    return str(told)
