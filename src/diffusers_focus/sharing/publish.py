"""Putting pipelines and models on the Hub: `push_to_hub` and `save_pretrained(push_to_hub=True)` with a card of our own.

diffusers' own methods write a template ("Model Card for Model ID") over the README.md of the folder and of a repository
that has none. These write a card that says what is there (`card.py`), and only where nobody has written one: neither the
folder's README.md nor the repository's is ever replaced. `FocusHubMixin` stands before `ModelMixin` or
`DiffusionPipeline` in a class's bases.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

from .card import Origin, pushed_card, section
from .loaders import loader_files

CARD, FIGURES, INDEX = "README.md", "metrics.json", "model_index.json"
# What talking to the Hub may raise: its refusals, and the HTTP client's own errors, whose base class its refusals have.
HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], HfHubHTTPError, OfflineModeIsEnabled)
_LICENCE = ("license", "license_name", "license_link")


class FocusHubMixin:
    """`save_pretrained` and `push_to_hub` of everything that is ours."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """diffusers' own; with `push_to_hub`, the folder then goes to the Hub with a card.

        Args:
            save_directory: The folder. Of a pipeline it also gets the files of `loaders.py`.
            args: `is_main_process` and `save_function` of a model.
            safe_serialization: False pickles the weights.
            variant: Part of the weight files' names, such as "fp16".
            max_shard_size: Largest weight file, in bytes or such as "5GB"; None leaves it to diffusers.
            push_to_hub: Upload the whole folder afterwards. A README.md in it is taken as it is, unless the repository has
                one already, which stays.
            use_flashpack: As in diffusers.
            kwargs: `repo_id` (the folder's name if left out), `private`, `token`, `commit_message`, `create_pr`, `subfolder`
                for the upload; `is_main_process` and `save_function` of a model.

        Raises:
            OSError: The disk or the Hub could not be written.
        """
        upload_names = ("repo_id", "private", "token", "commit_message", "create_pr", "subfolder")
        given = {name: kwargs.pop(name) for name in upload_names if name in kwargs} if push_to_hub else {}
        repo_id = ""
        if push_to_hub:
            name = given.pop("repo_id", None) or Path(save_directory).name
            repo_id = create_repository(name, private=given.pop("private", None), token=given.get("token"))
        kwargs |= {"safe_serialization": safe_serialization, "variant": variant, "use_flashpack": use_flashpack}
        if max_shard_size is not None:
            kwargs["max_shard_size"] = max_shard_size
        super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(save_directory)
        if (folder / INDEX).is_file():
            for path, text in loader_files(json.loads((folder / INDEX).read_text(encoding="utf-8"))).items():
                if (folder / path).parent.is_dir():
                    (folder / path).write_text(text, encoding="utf-8")
        if push_to_hub:
            publish(self, folder, repo_id, variant=variant, **given)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Upload the weights and a card to a repository of the Hub, which is made if there is none.

        The card says what is in it, how it is loaded, what it was loaded from and, where `metrics.json` lies beside that,
        its figures. A repository that has a card keeps it. A second push with another `variant` adds its files to the first.

        Args:
            repo_id: "name/repository".
            commit_message: Of the commit.
            private: Whether a new repository is private; None leaves it to the organization.
            token: With the right to write; None takes the one `hf auth login` left.
            create_pr: Propose the commit instead of making it.
            safe_serialization: False pickles the weights.
            variant: Part of the weight files' names, such as "fp16".
            subfolder: Where in the repository; no card is written then.
            max_shard_size: Largest weight file, in bytes or such as "5GB".

        Returns:
            The address of the commit.

        Raises:
            OSError: The Hub could not be reached or does not let this token write there.
        """
        repo_id = create_repository(repo_id, private=private, token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(
                folder, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            return publish(
                self,
                Path(folder),
                repo_id,
                variant=variant,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
                subfolder=subfolder,
            )


def publish(
    saved: Any,
    folder: Path,
    repo_id: str,
    *,
    variant: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a saved pipeline or model, with a card where there is none yet.

    Args:
        saved: What was saved in the folder.
        folder: It goes to the Hub as a whole. A card that is made for it stays in it.
        repo_id, variant, token, commit_message, create_pr, subfolder: See `FocusHubMixin.push_to_hub`.

    Returns:
        The address of the commit.
    """
    ignored = []
    if not subfolder:
        if HfApi(token=token).file_exists(repo_id, CARD):
            ignored = [CARD]
        elif not (folder / CARD).is_file():
            origin = find_origin(saved, folder, repo_id, token)
            (folder / CARD).write_text(pushed_card(folder, repo_id, type(saved), variant, origin), encoding="utf-8")
            if origin.metrics is not None and not (folder / FIGURES).exists():
                (folder / FIGURES).write_text(json.dumps(origin.metrics, indent=2) + "\n", encoding="utf-8")
    return upload(
        folder,
        repo_id,
        token=token,
        commit_message=commit_message or f"Upload {type(saved).__name__}",
        create_pr=create_pr,
        path_in_repo=subfolder,
        ignore_patterns=ignored,
    )


def create_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Make a model repository unless it is there; returns its full name. Raises OSError where that is refused."""
    try:
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    except HUB_ERRORS as error:
        raise OSError(
            f"{repo_id!r} cannot be written on the Hub: {_reason(error)}. Pass token=... with the right to write there, or log "
            "in with `hf auth login`."
        ) from error


def upload(folder: str | os.PathLike, repo_id: str, *, token: str | None = None, **options: Any) -> str:
    """Upload a folder to a repository that is there.

    Args:
        folder: What to upload, as it is.
        repo_id: "name/repository".
        token: With the right to write.
        options: `commit_message`, `create_pr`, `path_in_repo`, `ignore_patterns`.

    Returns:
        The address of the commit.

    Raises:
        OSError: The upload failed; the folder is still there.
    """
    try:
        commit: CommitInfo = HfApi(token=token).upload_folder(repo_id=repo_id, folder_path=folder, **options)
    except HUB_ERRORS as error:
        raise OSError(
            f"The upload to {repo_id!r} failed: {_reason(error)}. Files that were complete are kept there; the same call goes on."
        ) from error
    return str(commit)


def _reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".")


# --- where weights came from ---------------------------------------------------------------------------------------------


def find_origin(saved: Any, folder: Path, repo_id: str, token: str | None = None) -> Origin:
    """What is known about the weights of a pipeline or model, from the places it and its components were loaded from.

    Cards and `metrics.json` are looked for in local folders and in repositories of the Hub; what cannot be read is not
    known. `metrics.json` in the folder that goes to the Hub comes before that of the origin.

    Args:
        saved: A pipeline or a model.
        folder: Where it was saved.
        repo_id: Where it goes; a thing is no base model of itself.
        token: For private repositories.
    """
    parts = [saved, *getattr(saved, "components", {}).values()]
    places = dict.fromkeys(place for part in parts if (place := _place(getattr(part, "config", None))))
    known = [(place, read) for place in places if (read := _read_place(place, token)) is not None]
    own = next((read for place, read in known if place == _place(saved.config)), None)
    base_models = [place for place, read in known if read["hub"] and place != repo_id]
    base_models += [name for _, read in known if not read["hub"] for name in _as_list(read["facts"].get("base_model"))]
    licences = {json.dumps(read["licence"], sort_keys=True) for _, read in known if read["licence"]}
    if own is not None and own["licence"]:
        licence = own["licence"]
    elif len(licences) == 1:
        licence = json.loads(next(iter(licences)))
    else:
        licence = {"license": "other", "license_name": "several-see-base-models"} if licences else {}
    metrics = _read_json(folder / FIGURES) or (own["metrics"] if own is not None else None)
    return Origin(
        name=_shown(_place(saved.config)) if own is not None else "",
        base_models=tuple(dict.fromkeys(base_models)),
        licence=licence,
        limits=section(own["text"], "Limits") if own is not None else "",
        metrics=metrics,
    )


def _place(config: Any) -> str:
    """Where something was loaded from: a repository of the Hub, a local folder, or "" if nowhere."""
    name = config.get("_name_or_path") if isinstance(config, dict) else getattr(config, "_name_or_path", None)
    if not name:
        return ""
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots", str(name))
    if cached:
        return cached.group(1).replace("--", "/", 1)
    path = Path(name)
    if path.is_dir() and not (path / INDEX).is_file() and (path.parent / INDEX).is_file():
        path = path.parent  # a component's folder: its pipeline's has the card
    return str(path) if path.is_dir() else str(name)


def _shown(place: str) -> str:
    """A place as a card names it: a repository, or a folder without the folders above it."""
    return Path(place).name if Path(place).is_dir() else place


def _read_place(place: str, token: str | None) -> dict[str, Any] | None:
    """Card and figures of a place, None if it is neither a folder here nor a repository that can be read."""
    if Path(place).is_dir():
        text = (Path(place) / CARD).read_text(encoding="utf-8") if (Path(place) / CARD).is_file() else ""
        metrics, hub = _read_json(Path(place) / FIGURES), False
    else:
        text, metrics, hub = "", None, True
        try:
            if not HfApi(token=token).repo_exists(place):
                return None
            text = Path(hf_hub_download(place, CARD, token=token)).read_text(encoding="utf-8")
            metrics = _read_json(Path(hf_hub_download(place, FIGURES, token=token)))
        except EntryNotFoundError:
            pass  # a repository without card or figures
        except (*HUB_ERRORS, OSError, ValueError):
            return None  # not a name of the Hub, or not for us
    facts = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text else {}
    licence = {name: facts[name] for name in _LICENCE if facts.get(name)}
    return {"text": text, "facts": facts, "licence": licence, "metrics": metrics, "hub": hub}


def _read_json(path: Path) -> dict[str, Any] | None:
    """Metrics with figures in them, None where there are none."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) and found.get("groups") else None


def _as_list(value: Any) -> Iterable[str]:
    return [] if not value else [value] if isinstance(value, str) else list(value)
