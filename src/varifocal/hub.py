"""Upload a folder to the Hugging Face hub."""

from pathlib import Path

from varifocal.errors import ModelError


def upload(directory: Path, repo_id: str, *, message: str, private: bool = True) -> str:
    """Upload a folder as it is.

    Args:
        directory: all of its files go.
        repo_id: `owner/name`; created if it does not exist.
        message: of the commit.
        private: of a repository that is created.

    Returns:
        The repository's address.

    Raises:
        ModelError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        create_repo(repo_id, private=private, exist_ok=True)
        return str(upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"the hub did not take {directory.name} as {repo_id}: {str(error).splitlines()[0]}; "
            "log in with `hf auth login`, and name a repository of your own"
        ) from error
