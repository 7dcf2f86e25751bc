"""A model hub on localhost, for the real `huggingface_hub` client.

Serves the calls that saving, sharing and loading need: who am I, create, card check, upload (regular files in the
commit, large ones through git-lfs), commit, list, branch and tag, download. Everything is kept in memory. Private
repositories and every write want `TOKEN`. The client reads its address when it is imported, so it has to be started
with `environment()`: in another process.

What the Hub answers was taken from the client's own code (huggingface_hub 2.4): `X-Error-Code`, `X-Repo-Commit`, ETags,
the fields of tree entries. Xet is switched off, as this server speaks git-lfs alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"
LARGE = 16 * 1024  # bytes; larger files go through git-lfs, small ones travel in the commit


@dataclass
class Repository:
    """One model repository: commits as whole listings of files, and names for some of them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Record a listing of files as the newest of a branch."""
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """Branch, tag or commit -> commit."""
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    listed: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if len(content) > LARGE:
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return listed


class Hub:
    """The server and what is on it; a context manager that yields itself."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(_Handler):
            """The requests of this hub."""

            store = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What is in a repository: path -> content."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision) or ""]

    def environment(self, home: Path, **changes: str | None) -> dict[str, str]:
        """Environment of a process that takes this for the Hub; `home` holds its cache."""
        source = Path(__file__).resolve().parents[2] / "src"
        env = {
            **os.environ,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DIFFUSERS_VERBOSITY": "error",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONPATH": str(source),
            "PYTHONWARNINGS": "ignore",
        }
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            env.pop(name, None)
            env.pop(name.upper(), None)
        for name, value in changes.items():
            env.pop(name, None) if value is None else env.update({name: value})
        return env


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Hub

    def log_message(self, *_: object) -> None:
        """Silence: requests are kept in `Hub.requests`."""

    # --- answers --------------------------------------------------------------------------------------------------------

    def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        """Send bytes, or anything else as JSON; a HEAD request gets the headers alone."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Send an error as the Hub does."""
        headers = {"X_Error_Code": code} if code else {}
        self.answer({"error": message}, status, X_Error_Message=message, **headers)

    def known(self) -> bool:
        """Whether the token is the right one."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, repo_id: str, write: bool = False) -> Repository | None:
        """The repository, or None after an error has been sent."""
        repository = self.store.repositories.get(repo_id)
        if not self.known() and (write or repository is None or repository.private):
            # The client tells a hidden repository by its https address, which this server does not have, or by this code.
            return self.refuse(401, "" if write else "RepoNotFound", "Invalid username or password.")
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        return repository

    def body(self) -> bytes:
        """The request's content, whether its length is announced or it comes in chunks."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # --- requests -------------------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Hand the request to the first rule that knows its address."""
        path = unquote(urlsplit(self.path).path)
        self.store.requests.append((self.command, path))
        content = self.body()
        for method, pattern, handle in RULES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return handle(self, content, *found.groups())
        self.refuse(404, "", f"This stand-in does not know {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = route

    def who(self, _: bytes) -> None:
        if not self.known():
            return self.refuse(401, "", "Invalid username or password.")
        self.answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"displayName": "t"}}})

    def create(self, content: bytes) -> None:
        if not self.known():
            return self.refuse(401, "", "Invalid username or password.")
        asked = json.loads(content)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = repo_id in self.store.repositories
        if not there:
            private = asked.get("private") or asked.get("visibility") == "private"
            repository = self.store.repositories[repo_id] = Repository(private=bool(private))
            repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        url = f"{self.store.address}/{repo_id}"
        self.answer({"url": url, "name": repo_id, "id": repo_id}, 409 if there else 200)

    def check_card(self, content: bytes) -> None:
        text = json.loads(content)["content"]
        errors = [] if text.startswith("---\n") and "\n---\n" in text[4:] else [{"message": "no YAML header"}]
        self.answer({"errors": errors, "warnings": []})

    def prepare(self, content: bytes, repo_id: str) -> None:
        if self.find(repo_id, write=True) is None:
            return
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular", "shouldIgnore": False}
            for f in json.loads(content)["files"]
        ]
        self.answer({"files": files})

    def large_batch(self, content: bytes, repo_id: str) -> None:
        if self.find(repo_id, write=True) is None:
            return
        objects = []
        for wanted in json.loads(content)["objects"]:
            actions = {name: {"href": f"{self.store.address}/lfs/{wanted['oid']}"} for name in ("upload", "verify")}
            objects.append(wanted if wanted["oid"] in self.store.large else {**wanted, "actions": actions})
        self.answer({"transfer": "basic", "objects": objects})

    def large_file(self, content: bytes, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(content).hexdigest() != oid:
                return self.refuse(400, "", "The content is not what was announced")
            self.store.large[oid] = content
        self.answer({})

    def commit(self, content: bytes, repo_id: str, branch: str) -> None:
        repository = self.find(repo_id, write=True)
        if repository is None:
            return
        files = dict(repository.commits[repository.refs[branch]])
        for line in content.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.store.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(branch, files)
        url = f"{self.store.address}/{repo_id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def about(self, _: bytes, repo_id: str, revision: str | None) -> None:
        found = self.at(repo_id, revision or "main")
        if found is not None:
            sha, files = found
            private = self.store.repositories[repo_id].private
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": repo_id, "modelId": repo_id, "sha": sha, "private": private, "siblings": siblings})

    def tree(self, _: bytes, repo_id: str, revision: str, folder: str | None) -> None:
        found = self.at(repo_id, revision)
        if found is not None:
            sha, files = found
            inside = [
                entry(path, file) for path, file in files.items() if path.startswith(f"{folder}/" if folder else "")
            ]
            if folder and not inside:
                return self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            self.answer(inside, X_Repo_Commit=sha)

    def name_commit(self, content: bytes, repo_id: str, kind: str, name: str) -> None:
        repository = self.find(repo_id, write=True)
        if repository is None:
            return
        asked = json.loads(content or b"{}")
        start, name = (name, asked["tag"]) if kind == "tag" else (asked.get("startingPoint", "main"), name)
        repository.refs[name] = repository.resolve(start) or repository.refs["main"]
        self.answer({})

    def download(self, _: bytes, repo_id: str, revision: str, path: str) -> None:
        found = self.at(repo_id, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        facts = entry(path, files[path])
        etag = facts.get("lfs", facts)["oid"]
        self.answer(files[path], ETag=f'"{etag}"', X_Repo_Commit=sha, Accept_Ranges="none")

    def at(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision, or None after an error has been sent."""
        repository = self.find(repo_id)
        if repository is None:
            return None
        sha = repository.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]


_REPO = r"([^/]+/[^/]+)"
RULES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.check_card),
    ("POST", rf"/api/models/{_REPO}/preupload/[^/]+", _Handler.prepare),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.large_batch),
    ("PUT POST", r"/lfs/([0-9a-f]{64})", _Handler.large_file),
    ("POST", rf"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/api/models/{_REPO}/(branch|tag)/([^/]+)", _Handler.name_commit),
    ("GET", rf"/api/models/{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("GET HEAD", rf"/api/models/{_REPO}(?:/revision/([^/]+))?", _Handler.about),
    ("GET HEAD", rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.download),
]
