"""The page of the click-to-edit app (Gradio): what is where, and which event calls which method of the studio.

It runs offline and for this machine alone unless told otherwise. Everything that works with the mouse has a way by the keyboard:
a place can be typed in.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

try:
    import gradio as gr  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ValueError("The app needs Gradio: pip install 'diffusers-focus[demo]'") from error

from .studio import MODES, NEW, Session, Stopped, Studio

MAX_UPLOAD = "64mb"
WAITING = 16  # calls that may wait for their turn; further ones are told to come again
KEEP = 3600  # seconds that sessions and files of a page that was left are kept
CLICK, BOX = "click", "box (two clicks)"
TITLE = "FOCUS: point at something, say what should happen"
CSS = """
#canvas img { cursor: crosshair; }
#find, #point { align-self: stretch; height: auto; border-radius: 0; border-bottom: 2px solid var(--background-fill-primary); }
#history .grid-wrap { padding-top: 32px; }
footer { display: none !important; }
"""


def build_page(pipe: Any, files: Path) -> gr.Blocks:
    """The page.

    Args:
        pipe: a `FocusPipeline`.
        files: a folder for the pictures that are downloaded.
    """
    studio = Studio(pipe)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEEP, KEEP)) as page:
        state = gr.State(Session(), time_to_live=KEEP)
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=3):
                canvas = gr.Image(
                    label="picture",
                    interactive=False,
                    elem_id="canvas",
                    format="png",
                    buttons=["fullscreen"],
                    height=520,
                )
                status = gr.Markdown("Upload a picture, or let a scene be drawn.", elem_id="status")
                slider = gr.ImageSlider(
                    label="before | after", elem_id="slider", format="png", interactive=False, visible=False
                )
                history = gr.Gallery(
                    label="history: choose a picture to go back to it",
                    columns=4,
                    height=220,
                    object_fit="contain",
                    allow_preview=False,
                    fit_columns=False,
                    interactive=False,
                    elem_id="history",
                    format="png",
                    visible=False,
                )
            with gr.Column(scale=2):
                with gr.Row():
                    upload = gr.File(label="picture file", elem_id="upload", height=110, scale=3)
                    scene = gr.Button("Draw a scene", elem_id="scene", min_width=90)
                with gr.Group():
                    tool = gr.Radio([CLICK, BOX], value=CLICK, label="clicks on the picture", elem_id="tool")
                    mode = gr.Radio(list(MODES), value=NEW, label="what is found is", elem_id="mode")
                    with gr.Row():
                        words = gr.Textbox(label="words", placeholder="the red circle", elem_id="words", scale=3)
                        find = gr.Button("Find", elem_id="find", min_width=90)
                    with gr.Row():
                        place = gr.Textbox(
                            label="place, in pixels: x,y or x0,y0,x1,y1", placeholder="64,48", elem_id="place", scale=3
                        )
                        point = gr.Button("Point there", elem_id="point", min_width=90)
                    with gr.Accordion("brush", open=False, elem_id="brush"):
                        load_brush = gr.Button("Put the picture here", elem_id="load-brush")
                        editor = gr.ImageEditor(
                            label="paint on the picture",
                            sources=(),
                            transforms=(),
                            layers=False,
                            brush=gr.Brush(colors=["#ff4040"], color_mode="fixed", default_size=12),
                            type="numpy",
                            format="png",
                            elem_id="editor",
                        )
                        with gr.Row():
                            strokes = gr.Button("Find what is painted on", elem_id="strokes")
                            paint = gr.Button("Take the paint as the mask", elem_id="paint")
                    clear = gr.Button("No mask", elem_id="clear")
                with gr.Group():
                    question = gr.Textbox(
                        label="question", placeholder="how many objects are there?", elem_id="question"
                    )
                    about = gr.Checkbox(label="about the mask", elem_id="about")
                    ask = gr.Button("Ask", elem_id="ask")
                    answer = gr.Textbox(label="answer", interactive=False, elem_id="answer")
                with gr.Group():
                    instruction = gr.Textbox(
                        label="instruction", placeholder="make the star blue", elem_id="instruction"
                    )
                    with gr.Row():
                        seed = gr.Number(label="seed", value=0, precision=0, minimum=0, maximum=2**53 - 1, min_width=80)
                        steps = gr.Number(
                            label="steps (0: its own)", value=0, precision=0, minimum=0, maximum=1000, min_width=80
                        )
                        strength = gr.Number(label="strength", value=1.0, minimum=0.01, maximum=1.0, min_width=80)
                    crop = gr.Checkbox(
                        label="draw only the surroundings of the mask (large photographs)", elem_id="crop"
                    )
                    with gr.Row():
                        edit = gr.Button("Edit", variant="primary", elem_id="edit", min_width=80)
                        stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                        undo = gr.Button("Undo", elem_id="undo", min_width=80)
                with gr.Row():
                    image_file = gr.DownloadButton("Download picture", elem_id="image-file")
                    mask_file = gr.DownloadButton("Download mask", elem_id="mask-file")

        marked = [state, canvas, status, mask_file]
        shown = [*marked, slider, image_file, history]

        def act(session: Session, call: Callable[[], str], whole: bool = False) -> list[Any]:
            """Let the studio do something, and show how things are then: the mask, or the `whole` page."""
            text = told(call)
            values = [session, session.overlay(), text, _mask_file(session, files)]
            return [*values, *_picture(session, files)] if whole else values

        def on_canvas(session: Session, kind: str, how: str, event: gr.SelectData) -> list[Any]:
            x, y = ((at + 0.5) / session.scale for at in event.index)
            return act(session, lambda: (studio.click if kind == CLICK else studio.corner)(session, x, y, how))

        def on_place(session: Session, text: str, how: str) -> list[Any]:
            return act(session, lambda: _at_place(studio, session, text, how))

        def on_brush(session: Session, drawn: dict[str, Any] | None, how: str, *, exact: bool) -> list[Any]:
            marks = _marks(drawn)
            return act(session, lambda: (studio.paint if exact else studio.strokes)(session, marks, how))

        def on_ask(session: Session, text: str, masked: bool, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
            return told(lambda: studio.ask(session, text, masked, _progress(progress)))

        def on_edit(
            session: Session,
            text: str,
            number: float,
            count: float,
            share: float,
            near: bool,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> list[Any]:
            options = {"seed": int(number or 0), "steps": int(count or 0), "strength": share or 1.0, "crop": near}
            return act(session, lambda: studio.edit(session, text, progress=_progress(progress), **options), True)

        def on_history(session: Session, event: gr.SelectData) -> list[Any]:
            return act(session, lambda: studio.undo(session, event.index), True)

        def on_stop(session: Session) -> None:
            session.stop = True

        # What works with the pipeline takes turns; the rest does not wait for it.
        turns: dict[str, Any] = {"concurrency_id": "pipeline", "concurrency_limit": 1, "show_progress": "minimal"}
        light: dict[str, Any] = {"concurrency_id": "light", "concurrency_limit": 8, "show_progress": "hidden"}
        upload.upload(lambda s, path: act(s, lambda: studio.open(s, path), True), [state, upload], shown, **light)
        scene.click(
            lambda s: act(s, lambda: studio.draw_scene(s, random.randrange(10_000)), True), [state], shown, **light
        )
        canvas.select(on_canvas, [state, tool, mode], marked, **turns)
        gr.on(
            [find.click, words.submit],
            lambda s, text, how: act(s, lambda: studio.find(s, text, how)),
            [state, words, mode],
            marked,
            **turns,
        )
        gr.on([point.click, place.submit], on_place, [state, place, mode], marked, **turns)
        load_brush.click(lambda s: s.view(_image(s)), [state], [editor], **light)
        strokes.click(lambda s, d, how: on_brush(s, d, how, exact=False), [state, editor, mode], marked, **turns)
        paint.click(lambda s, d, how: on_brush(s, d, how, exact=True), [state, editor, mode], marked, **light)
        clear.click(lambda s: act(s, lambda: studio.clear(s)), [state], marked, **light)
        gr.on([ask.click, question.submit], on_ask, [state, question, about], [answer], **turns)
        gr.on(
            [edit.click, instruction.submit],
            on_edit,
            [state, instruction, seed, steps, strength, crop],
            shown,
            **{**turns, "show_progress": "full", "show_progress_on": [status]},
        )
        stop.click(on_stop, [state], None, queue=False)
        undo.click(lambda s: act(s, lambda: studio.undo(s), True), [state], shown, **light)
        history.select(on_history, [state], shown, **light)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def told(call: Callable[[], str]) -> str:
    """What a call of the studio returns; what it raises is told on the page."""
    try:
        return call()
    except Stopped as stopped:
        return str(stopped)
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(str(error), duration=15, print_exception=False) from error


def _image(session: Session) -> Any:
    told(lambda: str(session.require_image().size))
    return session.image


def _picture(session: Session, files: Path) -> list[Any]:
    """Before and after, the picture without loss, the history."""
    if not session.past:
        return [gr.ImageSlider(value=None, visible=False), None, gr.Gallery(value=[], visible=False)]
    pair = (session.view(session.past[-1].image), session.view(session.require_image()))
    middle = 50.0
    if session.edit_mask is not None:  # the line goes through what was changed
        columns = np.nonzero(session.edit_mask)[1]
        middle = 100 * (float(columns.mean()) + 0.5) / session.edit_mask.shape[1]
    file = str(Path(tempfile.mkdtemp(dir=files)) / "focus.png")
    session.require_image().save(file, compress_level=1)
    return [
        gr.ImageSlider(value=pair, slider_position=middle, visible=True),
        file,
        gr.Gallery(value=[(one.small, one.instruction) for one in session.past], visible=True, selected_index=None),
    ]


def _mask_file(session: Session, files: Path) -> str | None:
    """The mask, or where the last edit was, white on black."""
    mask = session.mask if session.mask is not None else session.edit_mask
    if mask is None:
        return None
    file = str(Path(tempfile.mkdtemp(dir=files)) / "focus-mask.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    return file


def _at_place(studio: Studio, session: Session, text: str, mode: str) -> str:
    """A place that was typed in: a point or a box."""
    try:
        numbers = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) == 2:
        return studio.click(session, *numbers, mode)
    if len(numbers) == 4:
        return studio.box(session, numbers, mode)
    raise ValueError(f"A place is two numbers x,y or four numbers x0,y0,x1,y1, in pixels of the picture; got {text!r}.")


def _marks(drawn: dict[str, Any] | None) -> np.ndarray:
    """Where the brush was, bool, from the value of an ImageEditor."""
    layers = [] if drawn is None else [np.asarray(layer)[..., 3] > 0 for layer in drawn["layers"]]
    return np.any(layers, axis=0) if layers else np.zeros((1, 1), dtype=bool)


def _progress(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), desc="drawing", unit="steps")


def serve(pipe: Any, *, host: str = "127.0.0.1", port: int = 7860, browser: bool = False, block: bool = True) -> Any:
    """Show the page at http://host:port, until the process is interrupted.

    Args:
        pipe: a `FocusPipeline`.
        host: 127.0.0.1 is seen from this machine alone; 0.0.0.0 from the whole network.
        port: 0 takes any free one.
        browser: open it in the browser.
        block: False returns the running page; close it with `.close()`.

    Raises:
        OSError: the port is taken.
    """
    folder = tempfile.TemporaryDirectory(prefix="diffusers-focus-")
    page = build_page(pipe, Path(folder.name))
    page.downloads = folder  # lives as long as the page
    try:
        page.launch(
            server_name=host,
            server_port=port or None,
            inbrowser=browser,
            share=False,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            css=CSS,
            quiet=True,
        )
    except OSError as error:
        folder.cleanup()
        raise OSError(
            f"The app cannot be shown at {host}:{port}: is the port taken? Another one is named by --port."
        ) from error
    print(f"The app is at {page.local_url}; stop it with Ctrl+C.", flush=True)
    if block:
        page.block_thread()
    return page
