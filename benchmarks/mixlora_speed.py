"""What mixtures cost: step time, peak memory and trained parameters next to LoRA and a dense form.

    OMP_NUM_THREADS=1 python benchmarks/mixlora_speed.py        # five to six minutes, 5 GiB

One command, one model (SmolLM2-135M's shape, random weights), one batch. In each round every method
takes one training step (forward, backward, AdamW), in turn, so that other work on the machine falls
on all alike; a ratio is the median over rounds of a round's own ratio. Seconds are the process's
own, on a GPU those of the clock. Peak memory is of a process
per method. The dense form makes the same choices and builds each row's update as a matrix. Then one
linear at width 2048, forward and backward, its update alone and with the frozen product.

Writes a table to the terminal and everything to --out (JSON).
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, MixLoraLayer

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
METHODS = (
    *("lora r=16", "mixlora E=16 r=4", "dense E=16 r=4"),
    *("experts E=4 r=4, token", "experts E=4 r=4, instance"),
)
Batch = dict[str, Tensor]


class DenseLayer(MixLoraLayer):
    """The same choices, with each row's update as one matrix [O, I]."""

    def _update(self, adapter: str, x: Tensor, y: Tensor, choice: Any, groups: Any) -> Tensor:
        pool_a = self.mixlora_a[adapter].weight[choice.factors_a[:, 0]]  # [B, r, I]
        pool_b = self.mixlora_b[adapter].weight[choice.factors_b[:, 0]]  # [B, r, O]
        delta = torch.bmm(pool_a.transpose(1, 2), pool_b * choice.weights[:, 0, :, None])
        dropped = self.mixlora_dropout[adapter](x)
        return y + self.mixlora_config[adapter].scaling * torch.bmm(dropped, delta).to(y.dtype)


class Nothing(nn.Linear):
    """A linear whose product costs next to nothing, to see the update alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the output's shape."""
        return x.new_zeros(*x.shape[:-1], self.out_features)


def config_of(method: str, dropout: float, targets: list[str]) -> PeftConfig:
    """Settings by the method's name."""
    if method.startswith("lora"):
        return LoraConfig(r=16, lora_alpha=32, lora_dropout=dropout, target_modules=targets)
    if method.startswith("experts"):
        router = "token" if method.endswith("token") else "instance"
        return LoraExpertsConfig(router=router, dropout=dropout, target_modules=targets)
    return MixLoraConfig(dropout=dropout, target_modules=targets)


def adapt(base: nn.Module, method: str, options: argparse.Namespace, targets: Any) -> PeftModel:
    """Put a method into a copy of a model that shares its weights."""
    twin = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    model = get_peft_model(twin, config_of(method, options.dropout, targets))
    for layer in model.modules():
        if method.startswith("dense") and type(layer) is MixLoraLayer:
            layer.__class__ = DenseLayer
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "mixlora_b" in name:  # off its start, so that every gradient flows
            nn.init.normal_(parameter, std=0.01)
    return model.train()


def batch_of(options: argparse.Namespace) -> Batch:
    """One batch: each row `segments` instances, the first half of each its prompt."""
    rows, length = options.rows, options.tokens
    ids = torch.randint(0, SHAPE["vocab_size"], (rows, length))
    place = torch.arange(length).expand(rows, length)
    size = length // options.segments
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": place % size,
        "segment_ids": place // size,
        "prompt_mask": place % size < size // 2,
    }


def arguments_for(method: str, batch: Batch) -> Batch:
    """LoRA has no use for marks, and no hook that takes them."""
    marks = ("segment_ids", "prompt_mask") if method.startswith("lora") else ()
    return {name: tensor for name, tensor in batch.items() if name not in marks}


def build(options: argparse.Namespace) -> nn.Module:
    """The base model, frozen."""
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE))
    return model.to(options.device, getattr(torch, options.dtype)).requires_grad_(False)


class Stepper:
    """One method's training step."""

    def __init__(self, model: PeftModel, batch: Batch) -> None:
        self.model = model
        self.batch = batch
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def __call__(self) -> float:
        """Take a step; return its seconds."""
        device = self.batch["input_ids"].device
        wait(device)
        start = seconds(device)
        self.model(**self.batch, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait(device)
        return seconds(device) - start


def seconds(device: torch.device) -> float:
    """Read the process's own clock, or the wall's for a GPU."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_model(options: argparse.Namespace) -> dict[str, Any]:
    """Time the methods on the whole model, interleaved."""
    base, batch = build(options), batch_of(options)
    batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
    methods = [m for m in options.methods if options.segments == 1 or not m.startswith("dense")]
    steps = {m: Stepper(adapt(base, m, options, SEVEN), arguments_for(m, batch)) for m in methods}
    trained = {
        m: sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        for m, step in steps.items()
    }
    times = interleave(steps, options.rounds)
    return {
        m: {
            "trained_parameters": trained[m],
            "step_s": statistics.median(times[m]),
            "ratio_to_lora": ratio(times[m], times[methods[0]]),
            "peak_memory_gib": peak_memory(m),
        }
        for m in methods
    }


def interleave(steps: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Run every step once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            seconds = step()
            if number:
                times[name].append(seconds)
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """Median over rounds of a round's own ratio."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def peak_memory(method: str) -> float:
    """Measure two steps of one method in a process of its own, in GiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", method]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(options: argparse.Namespace) -> None:
    """The other end of `peak_memory`."""
    batch = {name: tensor.to(options.device) for name, tensor in batch_of(options).items()}
    model = adapt(build(options), options.peak_of, options, SEVEN)
    step = Stepper(model, arguments_for(options.peak_of, batch))
    for _ in range(2):
        step()
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        # Not getrusage's ru_maxrss: a child inherits its parent's.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)


def measure_linear(options: argparse.Namespace) -> dict[str, Any]:
    """Time one linear's forward and backward at a width, its update alone and as a whole."""
    width, rows, tokens = options.width, 8, 128
    dtype = getattr(torch, options.dtype)
    x = torch.randn(rows, tokens, width, device=options.device, dtype=dtype, requires_grad=True)
    found: dict[str, Any] = {"width": width, "rows": rows, "tokens": tokens}
    for part, kind in (("update", Nothing), ("whole", nn.Linear)):
        linear = kind(width, width, bias=False).to(options.device, dtype)
        base = nn.Sequential(linear).requires_grad_(False)
        steps = {m: linear_step(adapt(base, m, options, ["0"]), x) for m in options.methods}
        times = interleave(steps, 4 * options.rounds)
        found[part] = {
            m: {
                "ms": 1000 * statistics.median(times[m]),
                "ratio_to_lora": ratio(times[m], times[options.methods[0]]),
            }
            for m in options.methods
        }
    return found


def linear_step(model: PeftModel, x: Tensor) -> Any:
    """One forward and backward pass of a linear."""
    direction = torch.randn_like(x)

    def step() -> float:
        wait(x.device)
        start = seconds(x.device)
        model(x).backward(direction)
        wait(x.device)
        return seconds(x.device) - start

    return step


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="the first is compared with")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--segments", type=int, default=1, help="instances packed into a row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("mixlora_speed.json"))
    parser.add_argument("--peak-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print_peak(options)
        return
    setting = {k: str(v) for k, v in vars(options).items() if k not in ("out", "peak_of")}
    setting |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    setting |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {"setting": setting, "model": measure_model(options)}
    report["linear"] = measure_linear(options)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(report)


def print_tables(report: dict[str, Any]) -> None:
    """Print what a person reads."""
    print(" ".join(f"{k}={v}" for k, v in report["setting"].items()), end="\n\n")
    print(f"{'one training step':26}{'trained':>12}{'seconds':>9}{'x LoRA':>8}{'peak GiB':>10}")
    for method, row in report["model"].items():
        print(
            f"{method:26}{row['trained_parameters']:>12,}{row['step_s']:>9.3f}"
            f"{row['ratio_to_lora']:>8.2f}{row['peak_memory_gib']:>10.2f}"
        )
    for part in ("update", "whole"):
        title = f"linear {report['linear']['width']}, {part}"
        print(f"\n{title:26}{'ms':>12}{'x LoRA':>9}")
        for method, row in report["linear"][part].items():
            print(f"{method:26}{row['ms']:>12.2f}{row['ratio_to_lora']:>9.2f}")


if __name__ == "__main__":
    main()
