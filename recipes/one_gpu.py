"""Train a stage of focus-tiny on one GPU with several processes: `python recipes/one_gpu.py --stage 3-drawn --minutes 7`.

Command:   python recipes/one_gpu.py --stage 3-drawn --output runs/focus-tiny --minutes 7
           python recipes/one_gpu.py --stage 3-drawn --output runs/focus-tiny --processes 8      (its own steps)
Hardware:  one NVIDIA GPU and two processor cores for each process (one draws pictures).
Expected:  3-drawn took 372 s for 262 steps of 168 pictures on one H200 and 16 cores of an Intel Xeon, 7 processes of 24 pictures,
           one CUDA MPS server, 27 November 2026 (`--processes 7 --pictures 24 --minutes 7.4`): 118 pictures a second where two
           processor cores alone make 2. Four ablation runs shared GPU and processor for the first 150 s of it. 3-redrawn took 371 s
           for 233 steps in the same way the day after (`--minutes 7.2`), with four edits a picture in place of three: 105.

A model this small leaves a GPU waiting: a step is some ten thousand operations, and starting one costs the processor more than
running it costs the GPU. So several processes share the GPU and average their gradients over gloo (NCCL allows one process a
GPU). CUDA's MPS server lets their operations run side by side; it is started where `nvidia-cuda-mps-control` is found and
stopped at the end; where `CUDA_MPS_PIPE_DIRECTORY` and `CUDA_MPS_LOG_DIRECTORY` are set, the one that runs there is used.

With `--minutes` the run has as many steps as fit: at a constant rate of learning for two fifths of the time, then with the decay
that ends where the time does. A stopped run goes on where it was when no time is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffusers_focus.command_line import add_overrides

ROOT = Path(__file__).resolve().parents[1]
CONSTANT = 0.4  # share of the time before the decay
ENDLESS = 10**6


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", default="3-drawn")
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "runs" / "focus-tiny"), help="training folder")
    parser.add_argument("--processes", type=int, default=8, metavar="N")
    parser.add_argument("--pictures", type=int, default=None, metavar="N", help="of each process (default: its share)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of each process")
    parser.add_argument("--minutes", type=float, default=None, metavar="M", help="as many steps as fit")
    parser.add_argument("--steps", type=int, default=None, metavar="N")
    add_overrides(parser)
    return parser.parse_args()


def rank(options: argparse.Namespace) -> None:
    """What one process does."""
    began = time.time()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    barrier = dist.barrier
    dist.barrier = lambda *_, **__: barrier()  # accelerate names a device, which gloo refuses
    from diffusers_focus.training.run import run_stage
    from diffusers_focus.training.stages import get_stage

    changes: dict[str, Any] = dict(options.overrides)
    # It bounds what a processor's memory has to hold; each process has no more than its share here.
    if "pictures_at_once" in get_stage(options.stage).options:
        changes.setdefault("pictures_at_once", None)
    if options.pictures:
        changes["batch_size"] = options.pictures * options.processes

    def same(value: Any) -> Any:
        """What the first process says."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def go(minutes: float | None, **more: Any) -> bool:
        return run_stage(
            options.stage,
            options.output,
            max_minutes=minutes,
            threads=1,
            workers=options.workers,
            overrides={**changes, **more},
            progress=dist.get_rank() == 0,
        )

    if options.minutes is None:
        go(None, **({"steps": options.steps} if options.steps else {}))
    else:
        end = same(began + 60 * options.minutes)
        go(same(CONSTANT * (end - time.time()) / 60), steps=ENDLESS, log_every=5)
        dist.barrier()
        state = Path(options.output) / "stages" / options.stage / "checkpoint" / "state.json"
        step, seconds = (json.loads(state.read_text())[name] for name in ("step", "seconds"))
        each = seconds / max(1, step)  # with the slow first steps, so the end comes rather early than late
        steps = same(step + max(1, int(0.95 * (end - time.time()) / each)))
        go(None, steps=steps, decay_fraction=(steps - step) / steps, log_every=5)
    dist.destroy_process_group()


def main() -> int:
    """Start the processes, wait for them; the first that fails ends all."""
    options = arguments()
    if "RANK" in os.environ:
        rank(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        shared = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        server = None if shared.keys() <= os.environ.keys() else shutil.which("nvidia-cuda-mps-control")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(29500 + os.getpid() % 1000), "WORLD_SIZE": str(options.processes)}
        environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(options.processes), "GLOO_SOCKET_IFNAME": "lo"}
        if server:
            environment |= shared
            subprocess.run([server, "-d"], env=environment, check=True)
        command = [sys.executable, __file__, *sys.argv[1:]]
        running = [subprocess.Popen(command, env={**environment, "RANK": str(n)}) for n in range(options.processes)]
        try:
            while any(process.poll() is None for process in running):
                if any(process.poll() for process in running):
                    break
                time.sleep(0.5)
        finally:
            for process in running:
                process.kill() if process.poll() is None else None
                process.wait()
            if server:
                subprocess.run([server], input="quit\n", text=True, env=environment, check=False)
    return max(abs(process.returncode) for process in running)


if __name__ == "__main__":
    sys.exit(main())
