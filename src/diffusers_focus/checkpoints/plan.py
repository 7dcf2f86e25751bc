"""Conversion plans: where every tensor of a checkpoint goes, said before any is read, and made one at a time.

`make_plan` matches a family's key table (`table.py`) with the shapes of a checkpoint and of our components;
`make_reverse_plan` does the same from ours to the original, with the same rules turned round. `apply_step` makes one
tensor.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import nn

from .table import Family, HasShape, Rule, Shape, fill, regex

Read = Callable[[str], torch.Tensor]

ROW_BLOCK = 8192  # rows of an embedding that are looked at or drawn at once

# New parts that start silent, so that weights trained without them keep working. All others start as their models make
# them: random weights, norms at one.
START_AT_ZERO = (
    "vision_encoder.fusion.to_out.weight",
    "vision_encoder.fusion.mlp.3.",
    "vision_encoder.query_adapter.layers.#.gamma",
    "vision_encoder.query_adapter.layers.#.beta",
    "mask_decoder.pixel_decoder.position_projection.weight",
    "mask_conditioner.proj_out.weight",
    "mask_conditioner.cell_guidance.proj_out.weight",
)


@dataclass(frozen=True)
class Step:
    """How one tensor is made.

    Args:
        component: Where it goes; "" when converting back.
        key: Its name there.
        sources: Names to read.
        operation: What is done with them, see `apply_step`.
        shape: Shape of the result.
        start: First row of a `split`.
    """

    component: str
    key: str
    sources: tuple[str, ...]
    operation: str
    shape: Shape
    start: int = 0

    @property
    def name(self) -> str:
        """ "component.key", or the key alone."""
        return f"{self.component}.{self.key}" if self.component else self.key


@dataclass
class Plan:
    """What becomes of every tensor of a checkpoint.

    Args:
        family: Name of the family.
        prefix: What stood before the original's names.
        steps: One for every tensor that is made.
        dropped: Source key -> why it is not used.
        initialised: "component.key" -> "zero" or "random". When converting back: names of the original that ours cannot
            fill -> why.
        duplicates: Dropped source key -> the key it must equal (`check_duplicates`).
        problems: What did not match; empty unless `allow_partial`.
    """

    family: str
    prefix: str = ""
    steps: list[Step] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def target_shapes(module: nn.Module) -> dict[str, Shape]:
    """Names and shapes of what a component stores: parameters and persistent buffers, tied ones once."""
    tied = {key for key, _ in module.named_parameters(remove_duplicate=False)} - dict(module.named_parameters()).keys()
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if key not in tied}


def make_plan(
    family: Family,
    infos: Mapping[str, HasShape],
    targets: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    allow_partial: bool = False,
) -> Plan:
    """Plan the way from an original checkpoint to our components.

    Targets that no rule of the family can reach belong to other checkpoints or are new: they are listed as initialised.

    Args:
        family: Its key table.
        infos: The checkpoint's tensors by name.
        targets: Component -> its parameters and their shapes (`target_shapes` of a model on the meta device).
        allow_partial: Leave out what does not match, and list it in `Plan.problems`, instead of raising.

    Raises:
        ValueError: The family is refused; or keys or shapes do not match (the first three and their count).
    """
    if family.refusal:
        raise ValueError(f"A checkpoint of the kind {family.name!r} cannot be converted: {family.refusal}")
    prefix = family.find_prefix(infos) or ""
    stored = {key.removeprefix(prefix): key for key in infos if key.startswith(prefix)}
    shapes = {name: tuple(infos[key].shape) for name, key in stored.items()}
    owners = {f"{component}.{key}": (component, key) for component, keys in targets.items() for key in keys}
    wanted = {name: tuple(targets[component][key]) for name, (component, key) in owners.items()}
    ties = [
        (name, twin, ours, ours_twin)
        for name, twin in family.ties
        if (ours := _name_of(family.rules, name)) and (ours_twin := _name_of(family.rules, twin))
    ]
    match = _match(family.rules, shapes, wanted, ties)

    plan = Plan(family.name, prefix)
    for name, made in match.made.items():
        component, key = owners[name]
        sources = tuple(stored[source] for source in made.sources)
        plan.steps.append(Step(component, key, sources, made.operation, made.shape, made.start))
    plan.dropped = {stored[name]: reason for name, reason in match.dropped.items()}
    plan.duplicates = {stored[name]: stored[twin] for name, twin in match.duplicates.items()}
    outside = {key: "is not known" for key in infos if not key.startswith(prefix)}
    for name, why in {**match.unmatched, **outside}.items():
        key = name if name in outside else stored[name]
        reason = _reason(family.dropped, name)
        ours = None if name in outside else _name_of(family.rules, name)
        if reason is None and ours and ours.partition(".")[0] not in targets:
            reason = f"belongs to {ours.partition('.')[0]}, which is not asked for"
        plan.dropped[key] = reason or f"left out: {why}"
        if reason is None:
            plan.problems.append(f"{key} {tuple(infos[key].shape)} {why}")
    plan.problems += _unfilled(family.rules, {n: s for n, s in wanted.items() if n not in match.made}, match.refused)
    for name in wanted:
        if name not in match.made:
            silent = any(regex(pattern).fullmatch(name) for pattern in START_AT_ZERO)
            plan.initialised[name] = "zero" if silent else "random"
    return _checked(plan, len(infos), allow_partial)


def make_reverse_plan(
    family: Family,
    infos: Mapping[str, Mapping[str, HasShape]],
    originals: Mapping[str, Sequence[int]] | None = None,
    *,
    prefix: str | None = None,
    allow_partial: bool = False,
) -> Plan:
    """Plan the way back, from our components to an original checkpoint, with the same rules.

    Without `originals` everything that has a name there is written in the size it has here (a widened convolution stays
    wide, an enlarged vocabulary large, tied tables once).

    Args:
        family: The original's key table.
        infos: Component -> its tensors by name.
        originals: Names and shapes (with the prefix) that the original must have.
        prefix: Written before every name; by default that of `originals`, or the family's first.
        allow_partial: As in `make_plan`.

    Returns:
        A plan whose steps read "component.key" and have no component. Parts the original lacks are dropped.

    Raises:
        ValueError: Names or shapes do not fit `originals` (the first three and their count).
    """
    if prefix is None:
        found = family.find_prefix({k: _Shaped(tuple(s)) for k, s in originals.items()}) if originals else None
        prefix = family.prefixes[0] if found is None else found
    wanted = None
    if originals is not None:
        wanted = {key.removeprefix(prefix): tuple(s) for key, s in originals.items() if key.startswith(prefix)}
    shapes = {f"{c}.{key}": tuple(info.shape) for c, tensors in infos.items() for key, info in tensors.items()}
    ties = [
        (ours, ours_twin, name, twin)
        for name, twin in family.ties
        if (ours := _name_of(family.rules, name)) and (ours_twin := _name_of(family.rules, twin))
    ]
    rules = tuple(rule.turned() for rule in family.rules)
    match = _match(rules, shapes, wanted, ties)

    plan = Plan(family.name, prefix)
    plan.steps = [Step("", prefix + n, m.sources, m.operation, m.shape, m.start) for n, m in match.made.items()]
    plan.dropped, plan.duplicates = match.dropped, match.duplicates
    for name, why in match.unmatched.items():
        known = _name_of(rules, name) is not None
        plan.dropped[name] = f"left out: {why}" if known else "the original has no such part"
        if known:
            plan.problems.append(f"{name} {shapes[name]} {why}")
    missing = {n: s for n, s in (wanted or {}).items() if n not in match.made and not _reason(family.dropped, n)}
    plan.problems += _unfilled(rules, missing, match.refused)
    plan.initialised = {key: "not kept here" for key in originals or () if key.removeprefix(prefix) not in match.made}
    return _checked(plan, len(shapes), allow_partial)


def apply_step(step: Step, read: Read) -> torch.Tensor:
    """Make the tensor of a step, in the dtype of its source.

    copy: as it is. reshape: other dimensions. split: rows from `start`. stack: sources one below the other.
    widen, narrow: zeros appended to, or cut off, the second dimension (input channels). add_rows, drop_rows: rows
    appended, or cut off; new rows are drawn from a normal distribution with the mean and deviation that each column
    has over the old rows, the same ones in every run.

    Args:
        step: From a plan.
        read: Gives a source tensor by name; called once for each of `step.sources`.

    Raises:
        ValueError: A tensor that was read does not have the shape that the plan saw.
    """
    tensors = [read(name) for name in step.sources]
    first, operation, shape = tensors[0], step.operation, step.shape
    if operation == "copy":
        result = first
    elif operation == "reshape":
        result = first.reshape(shape)
    elif operation == "split":
        result = first[step.start : step.start + shape[0]]
    elif operation == "stack":
        result = torch.cat(tensors)
    elif operation == "widen":
        result = first.new_zeros(shape)
        result[:, : first.shape[1]] = first
    elif operation == "narrow":
        result = first[:, : shape[1]]
    elif operation == "drop_rows":
        result = first[: shape[0]]
    elif operation == "add_rows":
        result = _with_rows(first, shape[0], seed=zlib.crc32(step.name.encode()))
    else:
        raise ValueError(f"{step.name} asks for the operation {operation!r}, which is none of a plan's.")
    if tuple(result.shape) != shape:
        found = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{step.name} should become {shape}, but {step.sources} gave {found}.")
    return result


def check_duplicates(plan: Plan, read: Read) -> None:
    """Compare tensors that a plan dropped as equal to another one.

    Raises:
        ValueError: They differ.
    """
    for key, twin in plan.duplicates.items():
        one, other = read(key), read(twin)
        if one.shape != other.shape or not torch.equal(one, other):
            raise ValueError(
                f"{key} was expected to equal {twin}, but it does not: they are separate here. Set "
                "tie_word_embeddings=False in the language model's config."
            )


def merge_plans(plans: Sequence[Plan]) -> Plan:
    """One plan of several checkpoints that fill the same components; what one of them fills is not initialised.

    Raises:
        ValueError: Two plans fill the same parameter.
    """
    counts = Counter(step.name for plan in plans for step in plan.steps)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} parameters have two sources, first {twice[:3]}.")
    merged = Plan(" + ".join(plan.family for plan in plans))
    for plan in plans:
        merged.steps += plan.steps
        merged.problems += plan.problems
        merged.dropped |= plan.dropped
        merged.duplicates |= plan.duplicates
        merged.initialised |= {name: how for name, how in plan.initialised.items() if name not in counts}
    return merged


def convert(
    family: Family,
    tensors: Mapping[str, torch.Tensor],
    targets: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    allow_partial: bool = False,
) -> dict[str, dict[str, torch.Tensor]]:
    """Convert tensors that are in memory: component -> state dict, without what the checkpoint does not have.

    Raises:
        ValueError: As `make_plan` and `check_duplicates`.
    """
    plan = make_plan(family, tensors, targets, allow_partial=allow_partial)
    check_duplicates(plan, tensors.__getitem__)
    result: dict[str, dict[str, torch.Tensor]] = {component: {} for component in targets}
    for step in plan.steps:
        result[step.component][step.key] = apply_step(step, tensors.__getitem__)
    return result


def convert_back(
    family: Family,
    components: Mapping[str, Mapping[str, torch.Tensor]],
    originals: Mapping[str, Sequence[int]] | None = None,
    *,
    prefix: str | None = None,
) -> dict[str, torch.Tensor]:
    """The reverse of `convert`, with the arguments of `make_reverse_plan`."""
    plan = make_reverse_plan(family, components, originals, prefix=prefix)
    tensors = {f"{component}.{key}": value for component, values in components.items() for key, value in values.items()}
    check_duplicates(plan, tensors.__getitem__)
    return {step.key: apply_step(step, tensors.__getitem__) for step in plan.steps}


@dataclass(frozen=True)
class _Made:
    sources: tuple[str, ...]
    operation: str
    shape: Shape
    start: int = 0


@dataclass
class _Match:
    made: dict[str, _Made] = field(default_factory=dict)  # by target name
    dropped: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)  # source name -> why
    refused: set[str] = field(default_factory=set)  # targets whose source does not fit


@dataclass(frozen=True)
class _Shaped:
    shape: Shape


def _match(
    rules: Sequence[Rule],
    sources: Mapping[str, Shape],
    targets: Mapping[str, Shape] | None,
    ties: Sequence[tuple[str, str, str, str]],
) -> _Match:
    """Find every source's way; without `targets` every name exists, in the size that follows from its sources."""
    match = _Match()
    stacks: dict[tuple[Rule, str], dict[int, str]] = {}
    for name, shape in sources.items():
        way = _way(rules, name, targets)
        if isinstance(way, str):
            match.unmatched[name] = way
            continue
        rule, index, outputs = way
        if rule.operation in ("split", "stack") and not shape:
            match.unmatched[name] = "has no rows to share"
            continue
        if rule.operation == "stack":
            stacks.setdefault((rule, outputs[0]), {})[index] = name
            continue
        if rule.operation == "split":
            made = _split(name, shape, outputs, targets)
        else:
            made = _one(rule, name, shape, outputs[0], targets)
        if isinstance(made, str):
            match.refused.update(outputs)
            if rule.operation == "fit":
                match.dropped[name] = f"{shape} {made}, which is initialised instead"
            else:
                match.unmatched[name] = made
        elif made.keys() & match.made.keys():
            match.unmatched[name] = f"is a second source of {outputs[0]}"
        else:
            match.made |= made
    for (rule, output), parts in stacks.items():
        names = tuple(parts[index] for index in sorted(parts))
        shape = (sum(sources[name][0] for name in names), *sources[names[0]][1:])
        alike = all(sources[name][1:] == shape[1:] for name in names)
        if len(names) == len(rule.sources) and alike and (targets is None or targets[output] == shape):
            match.made[output] = _Made(names, "stack", shape)
        else:
            match.unmatched |= {name: f"does not make {output} of {len(rule.sources)} parts" for name in names}
            match.refused.add(output)
    # One table or two equal ones: a second one must equal the first, a missing one is read from it.
    for name, twin, target, target_twin in ties:
        if name in match.unmatched and target_twin in match.made:
            del match.unmatched[name]
            match.dropped[name] = f"equal to {twin}, which serves both uses here"
            match.duplicates[name] = twin
        if name not in sources and targets is not None and target in targets and target_twin in match.made:
            match.made[target] = match.made[target_twin]
    return match


def _one(
    rule: Rule, name: str, shape: Shape, output: str, targets: Mapping[str, Shape] | None
) -> dict[str, _Made] | str:
    """One target of one source, or why it cannot be."""
    goal = shape if targets is None else targets[output]
    if not _fits(rule.operation, shape, goal):
        return f"does not fit {output} {goal}"
    # Most tensors already have the size that is wanted; those are copies, whatever their rule would allow.
    return {output: _Made((name,), "copy" if goal == shape else rule.operation, goal)}


def _split(
    name: str, shape: Shape, outputs: Sequence[str], targets: Mapping[str, Shape] | None
) -> dict[str, _Made] | str:
    """Several targets that share the rows of one source, or why they cannot; equal parts where no shape is wanted."""
    goals: list[Shape] = [(shape[0] // len(outputs), *shape[1:])] * len(outputs)
    if targets is not None:
        lacking = [output for output in outputs if output not in targets]
        if lacking:
            return f"belongs to {lacking[0]}, which does not exist"
        goals = [targets[output] for output in outputs]
    rows = [goal[0] if goal else 0 for goal in goals]
    if any((count, *shape[1:]) != goal for count, goal in zip(rows, goals)) or sum(rows) != shape[0]:
        return f"does not fit {outputs[0]} {goals[0]} and {len(outputs) - 1} more"
    starts = accumulate(rows, initial=0)
    return {o: _Made((name,), "split", goal, start) for o, goal, start in zip(outputs, goals, starts)}


def _way(
    rules: Sequence[Rule], name: str, targets: Mapping[str, Shape] | None
) -> tuple[Rule, int, tuple[str, ...]] | str:
    """The first rule for `name` with an existing target, the alternative of its source side, the targets; or why not."""
    why = "is not known"
    for rule in rules:
        for index, pattern in enumerate(rule.sources):
            found = regex(pattern).fullmatch(name)
            if found is None:
                continue
            outputs = tuple(fill(target, found.groups()) for target in rule.targets)
            if targets is None or any(output in targets for output in outputs):
                return rule, index, outputs
            why = f"belongs to {outputs[0]}, which does not exist"
    return why


def _name_of(rules: Sequence[Rule], name: str) -> str | None:
    way = _way(rules, name, None)
    return None if isinstance(way, str) else way[2][0]


def _fits(operation: str, source: Shape, target: Shape) -> bool:
    if source == target:
        return True
    if operation == "reshape":
        return math.prod(source) == math.prod(target)
    if operation in ("copy", "fit") or len(source) != len(target):
        return False
    dim = 1 if operation in ("widen", "narrow") else 0
    grows = operation in ("widen", "add_rows")
    rest = source[:dim] + source[dim + 1 :] == target[:dim] + target[dim + 1 :]
    return rest and (source[dim] < target[dim]) == grows


def _unfilled(rules: Sequence[Rule], missing: Mapping[str, Shape], refused: set[str]) -> list[str]:
    """Problems: targets that the table knows, but for which the checkpoint has nothing."""
    patterns = [regex(target) for rule in rules for target in rule.targets]
    known = [name for name in missing if name not in refused and any(p.fullmatch(name) for p in patterns)]
    return [f"{name} {missing[name]} has no source" for name in known]


def _checked(plan: Plan, count: int, allow_partial: bool) -> Plan:
    if plan.problems and not allow_partial:
        more = f"; and {len(plan.problems) - 3} more" * (len(plan.problems) > 3)
        raise ValueError(
            f"{len(plan.problems)} mismatches between {count} tensors and the {plan.family!r} table: "
            f"{'; '.join(plan.problems[:3])}{more}."
        )
    return plan


def _with_rows(table: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    """`table` [N, C] with rows appended; see `apply_step`. Block by block: such tables have a gigabyte and more."""
    count, width = table.shape
    total, squares = torch.zeros(2, width, dtype=torch.float64)
    for block in table.split(ROW_BLOCK):
        block = block.float()
        total += block.sum(0)
        squares += block.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    result = table.new_empty(rows, width)
    result[:count] = table
    generator = torch.Generator().manual_seed(seed)
    for block in result[count:].split(ROW_BLOCK):
        block.copy_(torch.randn(block.shape, generator=generator) * deviation.float() + mean.float())
    return result


def _reason(table: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((reason for pattern, reason in table if regex(pattern).fullmatch(name)), None)
