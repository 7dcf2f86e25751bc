"""Opens the example workflows in ComfyUI's own editor, in headless Chromium, and looks at what it would send to the server.

    PYTHON integrations/comfyui/checks/check_editor.py --comfyui FOLDER [--chromium /usr/bin/chromium] [--shots FOLDER]

PYTHON also needs playwright. A workflow is right when the editor turns it into the graph that `check.py` runs, and knows all of its
nodes. `--shots` presses Run in each and keeps a picture of the editor as it is then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from check import EXAMPLES, Comfy, Report, lay_out  # noqa: E402
from playwright.async_api import async_playwright  # noqa: E402

GRAPH = "async workflow => { await app.loadGraphData(workflow); return (await app.graphToPrompt()).output }"
FIT = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # nothing in front of the graph


def bare(graph: dict[str, Any]) -> dict[str, Any]:
    """Without what only the editor knows: titles, and the file that a preview or an upload button stands for."""
    return {
        number: {
            "class_type": one["class_type"],
            "inputs": {key: value for key, value in one["inputs"].items() if key not in ("upload", "preview")},
        }
        for number, one in graph.items()
    }


async def run_checks(args: argparse.Namespace) -> int:
    """Every example."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        (Path(folder) / "user" / "default").mkdir()
        (Path(folder) / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        async with Comfy(args.comfyui, Path(folder), args.port, cpu=True) as comfy, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 1600, "height": 900})
            page.set_default_timeout(300_000)  # milliseconds, for a busy machine
            await page.goto(comfy.url, wait_until="domcontentloaded")
            await page.wait_for_function(
                "window.app && window.app.graph && window.app.extensionManager", timeout=300_000
            )
            await page.wait_for_timeout(5_000)
            for count, file in enumerate(sorted(EXAMPLES.glob("*.json")), 1):
                sent = bare(await page.evaluate(GRAPH, json.loads(file.read_text(encoding="utf-8"))))
                wanted = bare(json.loads((EXAMPLES / "api" / file.name).read_text(encoding="utf-8")))
                wrong = [f"{number}: {sent.get(number)}" for number in wanted if sent.get(number) != wanted[number]]
                report.line(f"{file.stem} in the editor", not wrong and set(sent) == set(wanted), "; ".join(wrong))
                if args.shots is not None:
                    args.shots.mkdir(parents=True, exist_ok=True)
                    await page.evaluate("() => app.queuePrompt(0)")
                    await page.wait_for_timeout(1_000)
                    while any((await comfy.get("/queue")).values()):
                        await page.wait_for_timeout(1_000)
                    ended = [one["status"]["status_str"] for one in (await comfy.get("/history")).values()]
                    report.line(
                        f"{file.stem} run from the editor", ended == ["success"] * count, ended[-1] if ended else ""
                    )
                    await page.evaluate(FIT)
                    await page.wait_for_timeout(3_000)
                    await page.screenshot(path=args.shots / f"{file.stem}.png")
            await browser.close()
    return report.failed


def main() -> int:
    """Run the checks and return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, metavar="FOLDER", help="a checkout of ComfyUI")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8190)
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="run them there, and keep pictures of it")
    return asyncio.run(run_checks(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
