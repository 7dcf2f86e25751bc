"""The training loop: one recipe, one objective, resumable to the identical loss.

A stage is a frozen `StageRecipe` (what is trained, for how long, at which rate) plus an `Objective` (what a batch is and
what its loss is). The loop itself knows neither images nor words. It follows FOCUS section 3 (AdamW, no weight decay,
constant rate), with three additions that only matter for runs of minutes instead of weeks: a short warm-up, a linear
decay over the last part of the run, and Muon (Jordan et al. 2024, torch.optim's) where a recipe asks for it.

Several processes (`accelerate launch --num_processes 2 ...`) share a step: each draws its part of the batch, gradients are
averaged, and every process makes the same update. The first one writes.

Resuming is exact because nothing random lives between steps: every step seeds all generators from (recipe seed, step), and
its samples are a function of the step too. A checkpoint therefore holds weights, optimiser moments and the step.
"""

from __future__ import annotations

import csv
import json
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ..sharing.files import replace_file
from ..steps.attention import unplanned_attention
from .muon import Float32Muon
from .workers import check_workers, drawn_ahead

CHECKPOINT = "checkpoint"
OPTIMIZERS = ("adamw", "muon")
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one component that a stage trains.

    `component` is a component name; `include`/`exclude` are substrings of parameter names (empty `include` means all).
    `optimizer` is a name of `OPTIMIZERS`; "muon" is for matrices alone, at the rates of AdamW (its updates are as large).
    `optional` parameters need not be there: a component may be without a part that this project has added.
    """

    component: str
    learning_rate: float
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    optimizer: str = "adamw"
    optional: bool = False


@dataclass(frozen=True)
class StageRecipe:
    """What a stage trains and how (FOCUS section 3); the numbers of a run are recorded with its log.

    `mixed_precision` as accelerate knows it ("no", "bf16", "fp16"); `None` is what the device is made
    for (`fastest_precision`).
    """

    name: str
    objective: str
    groups: tuple[ParameterGroup, ...]
    steps: int
    batch_size: int
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    gradient_clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    mixed_precision: str | None = None
    seed: int = 0
    first_sample: int = 0
    ema_decay: float = 0.0
    save_every_minutes: float = 3.0
    log_every: int = 20
    options: dict[str, Any] = field(default_factory=dict)

    def learning_rate_factor(self, step: int) -> float:
        """Return the multiplier of the base rate at `step`: linear warm-up, constant, linear decay to 2%."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = self.decay_fraction * self.steps
        left = (self.steps - step) / decay_steps if decay_steps else 1.0
        return warm * max(0.02, min(1.0, left))


class Objective(Protocol):
    """What a stage optimises. Built by `training.stages.build_objective` from components and a recipe."""

    def modules(self) -> dict[str, nn.Module]:
        """Every module the objective trains or runs, by component name; extra training-only heads included."""
        ...

    def batch(self, step: int) -> Any:
        """Draw the batch of `step`, a function of the step alone."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the scalar loss and figures for the log."""
        ...


def fastest_precision(cpu: bool) -> str:
    """Return "bf16" where the device has instructions for bfloat16, else "no".

    Without them a processor multiplies matrices of bfloat16 a hundred times slower than those of float32 (0.5 and 66 GFLOP/s on a
    core of an AMD EPYC that has AVX2 alone, torch 2.13, November 2026).

    Args:
        cpu: whether the run is on the processor; else it is on the current CUDA device.
    """
    if not cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return "bf16" if computes_bfloat16(capabilities) else "no"


def computes_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a processor of these `torch.cpu.get_capabilities` has instructions for bfloat16."""
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def seed_step(seed: int, step: int) -> None:
    """Seed every generator for one step; the pair decides all randomness in it."""
    value = (seed * 1_000_003 + step * 7919) % (2**31 - 1)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def select_parameters(
    modules: dict[str, nn.Module], groups: Iterable[ParameterGroup]
) -> list[tuple[ParameterGroup, dict[str, nn.Parameter]]]:
    """Freeze everything, then unfreeze and collect what `groups` name; the first group that matches a parameter has it."""
    for module in modules.values():
        module.requires_grad_(False)
    taken: set[str] = set()
    selected = []
    for group in groups:
        if group.component not in modules:
            if group.optional:
                continue
            raise ValueError(
                f"the recipe trains component {group.component!r}, but the objective has only {sorted(modules)}; "
                "correct ParameterGroup.component"
            )
        chosen: dict[str, nn.Parameter] = {}
        for name, parameter in modules[group.component].named_parameters():
            wanted = not group.include or any(part in name for part in group.include)
            full = f"{group.component}.{name}"
            if wanted and not any(part in name for part in group.exclude) and full not in taken:
                parameter.requires_grad_(True)
                chosen[full] = parameter
                taken.add(full)
        if not chosen and group.optional:
            continue
        if not chosen:
            raise ValueError(f"no parameter of {group.component!r} matches include={group.include}; check the names")
        selected.append((group, chosen))
    return selected


def build_optimizers(
    recipe: StageRecipe, groups: Iterable[tuple[ParameterGroup, dict[str, nn.Parameter]]]
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers that `groups` (from `select_parameters`) name, each with its share of the parameters.

    Raises:
        ValueError: an unknown optimiser, or Muon for what is not a matrix.
    """
    shares: dict[str, list[dict[str, Any]]] = {}
    for group, chosen in groups:
        if group.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"the group of {group.component!r} has optimizer {group.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}"
            )
        others = [name for name, parameter in chosen.items() if parameter.ndim != 2]
        if group.optimizer == "muon" and others:
            raise ValueError(
                f"Muon turns matrices; {others[0]!r} and {len(others) - 1} more are none. Narrow `include`, and train the others "
                "in a group with AdamW"
            )
        rate = group.learning_rate
        share = {"params": list(chosen.values()), "lr": rate, "base_lr": rate}
        shares.setdefault(group.optimizer, []).append(share)
    builders: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "adamw": lambda share: torch.optim.AdamW(share, betas=recipe.betas, weight_decay=0.0, fused=True),
        "muon": lambda share: _muon(share)(share, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    }
    return {name: builders[name](shares[name]) for name in OPTIMIZERS if name in shares}


def _muon(share: list[dict[str, Any]]) -> type[torch.optim.Muon]:
    """torch's, but in float32 where the device of the parameters has no instructions for bfloat16."""
    cpu = share[0]["params"][0].device.type == "cpu"
    return Float32Muon if fastest_precision(cpu) == "no" else torch.optim.Muon


class Trainer:
    """Run one stage on accelerate (CPUs or accelerators), with checkpoints, CSV log and loss plot in `output_dir`.

    With several processes the objective's own batch is a process's part of `recipe.batch_size` (see `share_of`). `workers` are
    processes that draw batches ahead of each of them; the steps are the same.
    """

    def __init__(
        self,
        recipe: StageRecipe,
        objective: Objective,
        output_dir: str | Path,
        *,
        cpu: bool | None = None,
        on_checkpoint: Callable[[int], None] | None = None,
        workers: int = 0,
    ):
        check_workers(workers)
        self.recipe = recipe
        self.objective = objective
        self.directory = Path(output_dir)
        self.on_checkpoint = on_checkpoint
        self.workers = workers
        use_cpu = not torch.cuda.is_available() if cpu is None else cpu
        self.precision = recipe.mixed_precision or fastest_precision(use_cpu)
        self.accelerator = Accelerator(mixed_precision=self.precision, cpu=use_cpu)
        self.modules = objective.modules()
        for module in self.modules.values():
            module.to(self.accelerator.device)
        self.groups = select_parameters(self.modules, recipe.groups)
        self.parameters = {name: p for _, chosen in self.groups for name, p in chosen.items()}
        self.optimizers = {
            name: self.accelerator.prepare_optimizer(optimizer)
            for name, optimizer in build_optimizers(recipe, self.groups).items()
        }
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if recipe.ema_decay else {}
        self.step = 0
        self.seconds = 0.0

    @property
    def draw(self) -> int:
        """The number of the batch that this process draws next: processes take turns."""
        return self.step * self.accelerator.num_processes + self.accelerator.process_index

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write weights, moments and step to `<output>/checkpoint`; an interrupted write leaves the old one intact."""
        if not self.accelerator.is_main_process:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = self.directory / f".{CHECKPOINT}.new"
        if folder.exists():  # an interrupted write; its files may be of parts that this run does not have
            _remove(folder)
        folder.mkdir()
        save_file(
            {n: p.detach().cpu().contiguous() for n, p in self.parameters.items()}, folder / "weights.safetensors"
        )
        if self.average:
            save_file({n: p.cpu().contiguous() for n, p in self.average.items()}, folder / "average.safetensors")
        buffers = {
            f"{component}.{n}": b.detach().cpu().contiguous().clone()
            for component, module in self.modules.items()
            for n, b in module.named_buffers()
        }
        if buffers:
            save_file(buffers, folder / "buffers.safetensors")
        torch.save({name: o.state_dict() for name, o in self.optimizers.items()}, folder / "optimizer.pt")
        state = {"step": self.step, "seconds": self.seconds, "recipe": _plain(asdict(self.recipe))}
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        target, old = self.directory / CHECKPOINT, self.directory / f".{CHECKPOINT}.old"
        if target.exists():  # without it `old` is all there is, and must outlast the next rename
            if old.exists():
                _remove(old)
            os.replace(target, old)
        os.replace(folder, target)
        if old.exists():
            _remove(old)
        if self.on_checkpoint is not None:
            self.on_checkpoint(self.step)

    def load_checkpoint(self) -> bool:
        """Continue from `<output>/checkpoint` when it is there; raises ValueError when it is of another recipe."""
        folder = self.directory / CHECKPOINT
        if not folder.exists():
            folder = self.directory / f".{CHECKPOINT}.old"  # a stop between the two renames of save_checkpoint
        if not (folder / "state.json").exists():
            return False
        state = json.loads((folder / "state.json").read_text())
        weights = load_file(folder / "weights.safetensors")
        if weights.keys() != self.parameters.keys():
            differing = sorted(weights.keys() ^ self.parameters.keys())
            raise ValueError(
                f"the checkpoint in {folder} does not fit stage {self.recipe.name!r}: {len(differing)} parameters differ, "
                f"first {differing[:3]}; choose another --output or remove the checkpoint"
            )
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)
            for name, value in (load_file(folder / "average.safetensors") if self.average else {}).items():
                self.average[name].copy_(value)
            if (folder / "buffers.safetensors").exists():
                for name, value in load_file(folder / "buffers.safetensors").items():
                    component, _, rest = name.partition(".")
                    self.modules[component].get_buffer(rest).copy_(value)
        moments = torch.load(folder / "optimizer.pt", weights_only=True)
        if moments.keys() != self.optimizers.keys():
            raise ValueError(
                f"the checkpoint in {folder} was made with other optimisers ({', '.join(map(str, moments))[:60]}) than stage "
                f"{self.recipe.name!r} uses ({', '.join(self.optimizers)}); choose another --output or remove the checkpoint"
            )
        for name, moment in moments.items():
            self.optimizers[name].load_state_dict(moment)
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running average into the modules (call once, after training)."""
        for name, value in self.average.items():
            self.parameters[name].copy_(value)

    def _attention(self):
        """On CPUs the backward pass of fused attention is 3-8 times slower than plain products at small head widths."""
        if self.accelerator.device.type == "cpu":
            return sdpa_kernel(SDPBackend.MATH)
        return unplanned_attention(self.accelerator.device)

    # -- the loop --------------------------------------------------------------------------------------------------

    def _batches(self) -> Generator[Any, None, None]:
        """The batches of all steps that are left."""
        if self.workers:
            here = self.accelerator.num_processes
            draws = range(self.draw, self.recipe.steps * here, here)
            yield from drawn_ahead(self.objective, draws, self.workers, partial(seed_step, self.recipe.seed))
        while self.step < self.recipe.steps:
            yield self.objective.batch(self.draw)

    def train_step(self, batches: Iterator[Any] | None = None) -> dict[str, float]:
        """One optimiser step on the next batch; returns the figures of the step."""
        recipe = self.recipe
        seed_step(recipe.seed, self.draw)
        factor = recipe.learning_rate_factor(self.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
        batch = self.objective.batch(self.draw) if batches is None else next(batches)
        seed_step(recipe.seed, self.draw)  # again: a batch that was drawn elsewhere took no random numbers here
        with self.accelerator.autocast(), self._attention():
            loss, figures = self.objective.loss(batch, self.step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"stage {recipe.name!r}: loss is {loss.item()} at step {self.step}; lower the learning rate"
            )
        if loss.requires_grad:  # not where every sample of the batch was damaged
            with self._attention():
                self.accelerator.backward(loss)
        self._average_gradients()
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), recipe.gradient_clip)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average:
            decay = min(recipe.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, value in self.average.items():
                    value.lerp_(self.parameters[name], 1 - decay)
        self.step += 1
        return {"loss": mean_over_processes(loss.detach()).item(), "grad_norm": float(norm), **figures}

    def _average_gradients(self) -> None:
        """Give every process the mean gradient; a parameter that one process did not use counts as zero there.

        What no process used keeps no gradient, as in one process: with zeros its moments would fade, and it would go on moving.
        """
        if self.accelerator.num_processes == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in self.parameters.values()])
        used = mean_over_processes(used.to(self.accelerator.device)).tolist()
        parameters = [p for p, share in zip(self.parameters.values(), used, strict=True) if share]
        if not parameters:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        mean = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
        for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def _out_of_time(self, started: float, max_minutes: float | None) -> bool:
        """Whether to stop, the same answer in every process."""
        late = max_minutes is not None and time.monotonic() - started > 60 * max_minutes
        if self.accelerator.num_processes == 1 or max_minutes is None:
            return late
        flag: Any = self.accelerator.reduce(torch.tensor(float(late), device=self.accelerator.device), reduction="sum")
        return bool(flag > 0)

    def run(self, *, resume: bool = True, max_minutes: float | None = None, progress: bool = True) -> bool:
        """Train until the recipe's last step or for `max_minutes`; True when the stage is complete."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if resume:
            self.load_checkpoint()
        for module in self.modules.values():
            module.train()
        main = self.accelerator.is_main_process
        log = _Log(self.directory / "log.csv", self.step)
        started, saved = time.monotonic(), time.monotonic()
        earlier, window = self.seconds, []
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.step,
            desc=self.recipe.name,
            disable=not (progress and main),
            mininterval=5,
        )
        batches = self._batches()
        while self.step < self.recipe.steps:
            window.append(self.train_step(batches))
            self.seconds = earlier + time.monotonic() - started
            bar.update(1)
            if self.step % self.recipe.log_every == 0 or self.step == self.recipe.steps:
                keys = {k for row in window for k in row}
                mean = {k: float(np.mean([r[k] for r in window if k in r])) for k in sorted(keys)}
                if main:
                    log.write({"step": self.step, "seconds": round(self.seconds, 1), **mean})
                bar.set_postfix(
                    {k: f"{mean[k]:.4g}" for k in sorted(mean, key=lambda k: k != "loss")[:6]}, refresh=False
                )
                window = []
            if time.monotonic() - saved > 60 * self.recipe.save_every_minutes:
                self.save_checkpoint()
                saved = time.monotonic()
            if self._out_of_time(started, max_minutes):
                break
        bar.close()
        batches.close()
        self.save_checkpoint()
        if main:
            plot_log(self.directory / "log.csv", self.directory / "loss.png")
        self.accelerator.wait_for_everyone()
        return self.step >= self.recipe.steps


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes that share a step, the same in each; itself where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def share_of(recipe: StageRecipe) -> StageRecipe:
    """The recipe with one process's part of the batch, for its objective.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    count = PartialState(cpu=not torch.cuda.is_available()).num_processes if "WORLD_SIZE" in os.environ else 1
    if recipe.batch_size % count:
        raise ValueError(
            f"stage {recipe.name!r} takes {recipe.batch_size} samples a step, which {count} processes cannot share evenly; "
            "change batch_size or the number of processes"
        )
    options = {**recipe.options, "processes": count} if count > 1 else recipe.options
    return replace(recipe, batch_size=recipe.batch_size // count, options=options)


class _Log:
    """A CSV log that a resumed run continues: rows after the checkpoint's step are dropped, new columns appear at the end."""

    def __init__(self, path: Path, step: int):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open() as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append({k: (f"{v:.6g}" if isinstance(v, float) else v) for k, v in row.items()})
        names = list(dict.fromkeys(k for r in self.rows for k in r))
        replace_file(self.path, lambda path: self._write_rows(path, names))

    def _write_rows(self, path: Path, names: list[str]) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def plot_log(log: str | Path, picture: str | Path) -> None:
    """Draw every column of a training log against the step into one PNG (needs matplotlib, extra `[train]`)."""
    try:
        import matplotlib
    except ImportError:
        return  # the CSV is the record; the picture is a convenience of the extra
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not Path(log).exists():
        return  # a run that was stopped before its first row
    with Path(log).open() as file:
        rows = list(csv.DictReader(file))
    names = [n for n in (rows[0] if rows else {}) if n not in ("step", "seconds")]
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
        axis.plot(*zip(*points, strict=True), linewidth=1) if points else None
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(picture, dpi=70)
    plt.close(figure)


def shortened(recipe: StageRecipe, steps: int) -> StageRecipe:
    """Return `recipe` cut to `steps`, its warm-up scaled with it (trial runs and tests)."""
    return replace(recipe, steps=steps, warmup_steps=min(recipe.warmup_steps, max(1, steps // 10)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
