"""A ComfyUI server without a window, on a folder of its own, and one client of its HTTP interface."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from PIL import Image

SOURCES = Path(__file__).resolve().parents[3] / "src"
START = 300  # seconds the server may take, on a busy machine
RUN = 600  # and a workflow


class Comfy:
    """A server, and one client of it."""

    def __init__(self, folder: Path, base: Path, port: int, cpu: bool) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", base / "server.log"
        command = [
            sys.executable,
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            "--base-directory",
            str(base),
        ]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command + ["--cpu"] * cpu, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
            )

    async def __aenter__(self) -> Comfy:
        self.http = aiohttp.ClientSession()
        end = time.monotonic() + START
        while True:
            try:
                await self.get("/system_stats")
                break
            except aiohttp.ClientError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f"ComfyUI did not start; {self.log} says why:\n{self.log.read_text()[-3000:]}"
                    ) from None
                await asyncio.sleep(1)
        self.socket = await self.http.ws_connect(self.url + "/ws?clientId=check", max_msg_size=0)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.http.close()
        self.process.terminate()
        self.process.wait(60)

    async def get(self, path: str) -> Any:
        async with self.http.get(self.url + path) as answer:
            answer.raise_for_status()
            return await (answer.json() if "json" in answer.content_type else answer.read())

    async def post(self, path: str, **content: Any) -> tuple[int, Any]:
        async with self.http.post(self.url + path, json=content) as answer:
            return answer.status, await answer.json() if "json" in answer.content_type else None

    async def run(self, graph: dict[str, Any], on_event: Callable[[str, dict], Any] | None = None) -> Finished:
        """Queue a graph and wait until it has ended, well or not."""
        status, answer = await self.post("/prompt", prompt=graph, client_id="check")
        if status != 200 or answer.get("node_errors"):  # with errors in some branches, ComfyUI runs the others
            return Finished("refused", json.dumps(answer), {}, [])
        number, events = answer["prompt_id"], []
        async with asyncio.timeout(RUN):
            while True:
                message = await self.socket.receive()
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") != number:
                    continue
                events.append((kind, data))
                if on_event is not None:
                    await on_event(kind, data)
                if kind in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        while number not in (history := await self.get(f"/history/{number}")):  # it is written after the event
            await asyncio.sleep(0.2)
        outputs = history[number].get("outputs", {})
        return Finished(kind, data.get("exception_message", "").strip(), outputs, events)

    async def finish(self, graph: dict[str, Any]) -> Finished:
        """Run a graph that has to succeed."""
        done = await self.run(graph)
        if done.kind != "execution_success":
            raise RuntimeError(f"{done.kind}: {done.message}")
        return done

    async def pictures(self, outputs: dict[str, Any], node: str) -> list[np.ndarray]:
        """The saved images of a node, uint8 [height, width, 3]."""
        found = []
        for one in outputs[node]["images"]:
            query = "&".join(f"{key}={one[key]}" for key in ("filename", "subfolder", "type"))
            found.append(np.asarray(Image.open(io.BytesIO(await self.get(f"/view?{query}"))).convert("RGB")))
        return found

    def memory(self) -> float:
        """Resident MB of the server."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


class Finished:
    """How a graph ended: `kind` is execution_success, _error or _interrupted, or "refused" before it ran."""

    def __init__(self, kind: str, message: str, outputs: dict[str, Any], events: list[tuple[str, dict]]) -> None:
        self.kind, self.message, self.outputs, self.events = kind, message, outputs, events

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Progress as it was told."""
        return [(data["value"], data["max"]) for kind, data in self.events if kind == "progress"]
