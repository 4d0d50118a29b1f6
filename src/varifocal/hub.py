"""What leaves this machine: texts without its paths, and uploads to the Hugging Face hub."""

import re
from collections.abc import Iterable
from pathlib import Path

from varifocal.errors import ModelError

_PATH = re.compile(r"""(?<![\w/.:~-])/(?:[^/\s"'`<>|]+/)+([^/\s"'`<>|]*)""")


def cut_paths(text: str, known: Iterable[str | Path] = ()) -> str:
    """Cut each absolute path in a text to its last part; addresses of the web stay.

    Args:
        text: of a card, a page or a command.
        known: paths that may hold blanks, which end any other path.

    >>> cut_paths("see /home/me/runs/a.json and https://example.org/a/b, and/or 'c/d'")
    "see a.json and https://example.org/a/b, and/or 'c/d'"
    >>> cut_paths("ask '/my disk/run' Why?", known=["/my disk/run"])
    "ask 'run' Why?"
    """
    for path in sorted(map(str, known), key=len, reverse=True):
        if path != "/":
            text = text.replace(path, Path(path).name)
    return _PATH.sub(r"\1", text)


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

    # The hub's own error is an OSError, too; that of a connection is its HTTP library's alone.
    connection = next(
        kind
        for kind in HfHubHTTPError.__mro__
        if issubclass(kind, Exception) and kind.__name__ == "HTTPError"
    )
    try:
        create_repo(repo_id, private=private, exist_ok=True)
        return str(upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message))
    except (connection, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the hub did not take {directory.name} as {repo_id}: {reason}; log in with "
            "`hf auth login` from where the hub can be reached, and name a repository of your own"
        ) from error
