"""Small files beside a saved pipeline through which `DiffusionPipeline` alone can load it.

    DiffusionPipeline.from_pretrained("org/name", custom_pipeline="focus_pipeline", trust_remote_code=True)

works in a process that has never heard of this package, as long as it is installed. diffusers 0.42 reads the index of a
repository before it runs the pipeline's file, and refuses classes of libraries it does not know unless a file of the
library's name lies in the component's folder. So beside the pipeline's file (named after the class: diffusers copies
such files into one folder, where equal names of different content would meet) there is one of a line in the folder of
each component of ours. Our own classes never run any of these files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PACKAGE = __name__.partition(".")[0]


def loader_files(index: Mapping[str, Any]) -> dict[str, str]:
    """The files that belong to a pipeline.

    Args:
        index: Content of model_index.json.

    Returns:
        Path in the folder -> text. The first is the pipeline's own file.
    """
    pipeline = index["_class_name"]
    name = shim_name(pipeline)
    files = {
        f"{name}.py": f'"""What `DiffusionPipeline.from_pretrained(..., custom_pipeline="{name}")` loads."""\n\n'
        f"from {PACKAGE} import {pipeline}  # noqa: F401\n"
    }
    for component, value in index.items():
        if isinstance(value, (list, tuple)) and isinstance(value[0], str) and value[0].startswith(f"{PACKAGE}."):
            module, cls = value
            files[f"{component}/{module}.py"] = (
                f'"""The class of this component, for `DiffusionPipeline`."""\n\nfrom {module} import {cls}  # noqa: F401\n'
            )
    return files


def shim_name(pipeline: str) -> str:
    """Name of a pipeline class -> what `custom_pipeline` has to be: `FocusPipeline` -> `focus_pipeline`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", pipeline).lower()
