"""Putting a finished folder on the Hub."""

from __future__ import annotations

import os


def push_folder(folder: str | os.PathLike[str], repo_id: str) -> str:
    """Upload a folder to a model repository, which is made (private) if there is none.

    Args:
        folder: What to upload, as it is.
        repo_id: "name/repository".

    Returns:
        The address of the commit.

    Raises:
        ValueError: The upload failed; the folder is still there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Converted weights"))
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{repo_id!r} could not be written: {why}. The result is complete in {str(folder)!r}; log in with `hf auth "
            f"login` and upload it with `hf upload {repo_id} {folder}`."
        ) from error
