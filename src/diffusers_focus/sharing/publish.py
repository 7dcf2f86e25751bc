"""Putting pipelines and models on the Hub: `push_to_hub` and `save_pretrained(push_to_hub=True)` with a card of our own.

diffusers' own methods write a template ("Model Card for Model ID") over the README.md of the folder and of a repository
that has none. These write a card that says what is there (`card.py`), and only where nobody has written one: neither the
folder's README.md nor the repository's is ever replaced. `FocusHubMixin` stands before `ModelMixin`,
`DiffusionPipeline` or `ModularPipeline` in a class's bases.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from .card import Origin, pushed_card, section
from .files import replace_text
from .loaders import loader_files

CARD, FIGURES, INDEX, MODULAR_INDEX = "README.md", "metrics.json", "model_index.json", "modular_model_index.json"
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
                    replace_text(folder / path, text)
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
    if HfApi(token=token).file_exists(repo_id, f"{subfolder}/{CARD}" if subfolder else CARD):
        ignored = [CARD]
    elif not subfolder and not (folder / CARD).is_file():
        origin = find_origin(saved, folder, repo_id, token)
        replace_text(folder / CARD, pushed_card(folder, repo_id, type(saved), variant, origin))
        if origin.metrics is not None and not (folder / FIGURES).exists():
            replace_text(folder / FIGURES, json.dumps(origin.metrics, indent=2) + "\n")
    forget_places(folder)
    return upload(
        folder,
        repo_id,
        token=token,
        commit_message=commit_message or f"Upload {type(saved).__name__}",
        create_pr=create_pr,
        path_in_repo=subfolder,
        ignore_patterns=ignored,
    )


def forget_places(folder: Path) -> None:
    """Take from the configurations in a folder where on this disk things were loaded from; that is nobody's business.

    Parts of a modular index that lie on this disk are then those of the folder itself, wherever it goes.
    """
    if (modular := folder / MODULAR_INDEX).is_file():
        index = json.loads(modular.read_text(encoding="utf-8"))
        for entry in index.values():
            if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict):
                place = entry[2].get("pretrained_model_name_or_path") or ""
                if os.path.isdir(place) or os.path.isabs(place):
                    entry[2]["pretrained_model_name_or_path"] = None
        replace_text(modular, json.dumps(index, indent=2, sort_keys=True) + "\n")
    for file in (*folder.glob("*.json"), *folder.glob("*/*.json")):
        if '"_name_or_path"' in (text := file.read_text(encoding="utf-8")):
            config = json.loads(text)
            place = config.get("_name_or_path") or "" if isinstance(config, dict) else ""
            if os.path.isdir(place) or os.path.isabs(place):
                del config["_name_or_path"]
                replace_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


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
    """An error of the client in one line."""
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.server_message or error.response.reason_phrase}".rstrip(".")
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


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
    known = {place: found for place in places if (found := _read_place(place, token)) is not None}
    # A modular pipeline keeps its own place beside its configuration.
    own = known.get(_place(saved.config) or str(getattr(saved, "_pretrained_model_name_or_path", None) or ""))
    base_models = [name for found in known.values() for name in found.base_models if name != repo_id]
    licences = [found.licence for found in known.values() if found.licence]
    if own is not None and own.licence:
        licence: Mapping[str, str] = own.licence
    elif licences:
        several = {"license": "other", "license_name": "several-see-base-models"}
        licence = licences[0] if all(one == licences[0] for one in licences) else several
    else:
        licence = {}
    return Origin(
        name=own.name if own is not None else "",
        base_models=tuple(dict.fromkeys(base_models)),
        licence=licence,
        limits=own.limits if own is not None else "",
        metrics=_read_metrics(folder / FIGURES) or (own.metrics if own is not None else None),
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


def _read_place(place: str, token: str | None) -> Origin | None:
    """What card and figures of a place say, None if it is neither a folder here nor a repository that can be read."""
    folder = Path(place)
    if folder.is_dir():
        text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
        facts, licence = _read_card(text)
        bases = facts.get("base_model") or []
        bases = [bases] if isinstance(bases, str) else bases
        return Origin(folder.name, tuple(bases), licence, section(text, "Limits"), _read_metrics(folder / FIGURES))
    try:
        info = HfApi(token=token).model_info(place)
        there = {sibling.rfilename for sibling in info.siblings or []}
        files = {name: Path(hf_hub_download(place, name, token=token)) for name in (CARD, FIGURES) if name in there}
    except (*HUB_ERRORS, OSError, ValueError):
        return None  # not a name of the Hub, or not for us
    text = files[CARD].read_text(encoding="utf-8") if CARD in files else ""
    _, licence = _read_card(text)
    if info.private:
        return Origin(licence=licence)  # what is private is not named in public
    metrics = _read_metrics(files[FIGURES]) if FIGURES in files else None
    return Origin(place, (place,), licence, section(text, "Limits"), metrics)


def _read_card(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts in a card's header, and those about the licence."""
    facts = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text else {}
    return facts, {name: facts[name] for name in _LICENCE if facts.get(name)}


def _read_metrics(path: Path) -> dict[str, Any] | None:
    """Metrics with figures in them, None where there are none."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) and found.get("groups") else None
