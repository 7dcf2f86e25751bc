"""The nodes: ComfyUI's V3 schema over `schema.NODES`, each calling one function of `work`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from . import runtime, work
from .schema import CATEGORY, NODES, PIPELINE, Input, Output

PipelineType = io.Custom(PIPELINE)


def make_schema(node_id: str, **options: dict[str, Any]) -> io.Schema:
    """The `io.Schema` of a row of `NODES`; `options` adds to an input what is only known at run time."""
    node = NODES[node_id]
    return io.Schema(
        node_id=node_id,
        display_name=node.name,
        category=CATEGORY,
        description=node.description,
        inputs=[_input(one, options.get(one.id, {})) for one in node.inputs],
        # Without ids: outputs may not share one with an input, and most are named like the input they continue.
        outputs=[_kind(one).Output(display_name=one.id, tooltip=one.tooltip) for one in node.outputs],
    )


def _kind(one: Input | Output) -> Any:
    return PipelineType if one.kind == PIPELINE else getattr(io, one.kind)


def _input(one: Input, more: dict[str, Any]) -> Any:
    return _kind(one).Input(one.id, optional=one.optional, tooltip=one.tooltip, **one.options, **more)


def says_something(name: str, text: str | None) -> bool | str:
    """Refuse an empty text before anything runs; None is linked, not known yet.

    ComfyUI tells what `validate_inputs` returns once for each of its arguments, as if all of them were wrong. So only nodes with
    one text that must be there have it; what is wrong with points, boxes and strokes is told when the node runs.
    """
    return True if text is None or text.strip() else f"Input {name}: it is empty. Write at least one word."


class FocusLoad(io.ComfyNode):
    """Load FOCUS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusLoad", folder={"options": runtime.folder_options()})

    @classmethod
    def fingerprint_inputs(cls, folder: str, hub_id: str, **others: str) -> str:
        return runtime.fingerprint(folder, hub_id)

    @classmethod
    def execute(cls, **inputs: str) -> io.NodeOutput:
        return io.NodeOutput(runtime.load(**inputs))


class FocusAsk(io.ComfyNode):
    """FOCUS Ask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusAsk")

    @classmethod
    def validate_inputs(cls, question: str | None = None) -> bool | str:
        return says_something("question", question)

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(work.ask(pipe, **inputs))


class FocusSegment(io.ComfyNode):
    """FOCUS Segment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusSegment")

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(*work.segment(pipe, **inputs))


class FocusSegmentClip(io.ComfyNode):
    """FOCUS Segment Clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusSegmentClip")

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(*work.segment_clip(pipe, **inputs))


class FocusEdit(io.ComfyNode):
    """FOCUS Edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusEdit")

    @classmethod
    def validate_inputs(cls, instruction: str | None = None) -> bool | str:
        return says_something("instruction", instruction)

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(*work.edit(pipe, **inputs))


class FocusEditClip(io.ComfyNode):
    """FOCUS Edit Clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusEditClip")

    @classmethod
    def validate_inputs(cls, instruction: str | None = None) -> bool | str:
        return says_something("instruction", instruction)

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(*work.edit_clip(pipe, **inputs))


class FocusGenerate(io.ComfyNode):
    """FOCUS Generate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema("FocusGenerate")

    @classmethod
    def validate_inputs(cls, description: str | None = None) -> bool | str:
        return says_something("description", description)

    @classmethod
    def execute(cls, pipeline: runtime.LoadedPipeline, **inputs: Any) -> io.NodeOutput:
        with pipeline.at_work() as pipe:
            return io.NodeOutput(work.generate(pipe, **inputs))


class FocusExtension(ComfyExtension):
    """All of them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FocusLoad, FocusAsk, FocusSegment, FocusSegmentClip, FocusEdit, FocusEditClip, FocusGenerate]
