"""What a conversion plan does, key by key, as data for JSON and as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .plan import Plan


def report(plan: Plan) -> dict[str, Any]:
    """Every source key and every target parameter of a plan, for JSON.

    Returns:
        `family`, `prefix`, `sources` (key -> {"to": names} or {"dropped": reason}), `targets` (name -> {"from": keys,
        "operation": ..., "shape": ...} or {"initialised": how}), `problems` and `counts`.
    """
    sources: dict[str, dict[str, Any]] = {}
    targets: dict[str, dict[str, Any]] = {}
    for step in plan.steps:
        targets[step.name] = {"from": list(step.sources), "operation": step.operation, "shape": list(step.shape)}
        for key in step.sources:
            sources.setdefault(key, {"to": []})["to"].append(step.name)
    sources |= {key: {"dropped": reason} for key, reason in plan.dropped.items()}
    targets |= {name: {"initialised": how} for name, how in plan.initialised.items()}
    counts = {
        "sources": len(sources),
        "targets": len(targets),
        "dropped": len(plan.dropped),
        "initialised": len(plan.initialised),
        "operations": dict(Counter(step.operation for step in plan.steps)),
    }
    return {
        "family": plan.family,
        "prefix": plan.prefix,
        "counts": counts,
        "sources": sources,
        "targets": targets,
        "problems": list(plan.problems),
    }


def report_text(plan: Plan) -> str:
    """The report to read: a line for each target, then what was dropped, what is initialised and what did not match."""
    facts = report(plan)
    counts = facts["counts"]
    lines = [
        f"{plan.family}: {counts['sources']} source tensors, {counts['dropped']} dropped; "
        f"{counts['targets']} parameters, {counts['initialised']} initialised"
    ]
    for step in plan.steps:
        how = "" if step.operation == "copy" else f" ({step.operation})"
        lines.append(f"  {' + '.join(step.sources)} -> {step.name}{how}")
    for title, entries in (("dropped", plan.dropped), ("initialised", plan.initialised)):
        lines += [f"{title}: {len(entries)}"] * bool(entries)
        lines += [f"  {key}: {why}" for key, why in entries.items()]
    lines += [f"not matched: {len(plan.problems)}"] * bool(plan.problems)
    lines += [f"  {problem}" for problem in plan.problems]
    return "\n".join(lines)
