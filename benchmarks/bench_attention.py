"""How fast attention with decomposed relative positions is, beside the formula written out.

usage:  python benchmarks/bench_attention.py [--threads 1] [--device cpu] [--dtype float32] [--repeat 3]

For the windows and the whole maps of a ViT-B at 1024 pixels, and the pooled keys of an MViTv2-T: time of the forward
pass, time with the backward pass, and memory kept for the backward pass. Two implementations stand beside the formula;
those that `detectron2.modeling.backbone.utils.decomposed_attention` takes here, without and with gradients, have a
star. Results are compared. Then the same for the windows of a Swin-B, with and without the mask of shifted windows.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial

import torch

from detectron2.modeling.backbone import swin, utils

CASES = {  # name: (images times heads times windows, side of queries, side of keys, channels of a head)
    "ViT windows 14 x 14": (25 * 12, 14, 14, 64),
    "ViT map 32 x 32": (12, 32, 32, 64),
    "ViT map 64 x 64": (12, 64, 64, 64),
    "MViT windows 56 x 56, keys 14 x 14": (25, 56, 14, 96),
    "MViT map 128 x 128, keys 32 x 32": (2, 128, 32, 96),
    "MViT windows 14 x 14": (25 * 4, 14, 14, 96),
}
SWIN_CASES = {"Swin windows 7 x 7": (37, 4, False), "Swin shifted windows 7 x 7": (37, 4, True)}  # across, heads, mask


def formula(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size):
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    logits = utils.add_decomposed_rel_pos(logits, q, rel_pos_h, rel_pos_w, q_size, k_size)
    return logits.softmax(-1) @ v


def _with(attend: Callable) -> Callable:
    def run(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size):
        terms = utils._decomposed_rel_pos(q, rel_pos_h, rel_pos_w, q_size, k_size)
        return attend(q * q.shape[-1] ** -0.5, k, v, *terms)

    return run


NAMES = {"_attend_explicitly": "in place", "_attend_fused": "fused"}
IMPLEMENTATIONS = {"in place": _with(utils._attend_explicitly), "fused": _with(utils._attend_fused)}


def milliseconds(functions: list[Callable[[], object]], args: argparse.Namespace) -> list[float]:
    """Best time of each; they take turns, so that what else the machine does hits all of them."""
    # The processor's time, where that is the time taken: others on the machine do not count.
    clock = time.process_time if args.threads == 1 and args.device == "cpu" else time.perf_counter
    best = [float("inf")] * len(functions)
    for _ in range(args.repeat):
        for i, function in enumerate(functions):
            begin = clock()
            function()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            best[i] = min(best[i], 1e3 * (clock() - begin))
    return best


def kept_megabytes(function: Callable[[], torch.Tensor]) -> float:
    """Size of what autograd keeps between forward and backward, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(storages.values()) / 2**20


def bench(name: str, batch: int, q_side: int, k_side: int, head_dim: int, args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    table = (2 * max(q_side, k_side) - 1, head_dim)
    shapes = [(batch, side * side, head_dim) for side in (q_side, k_side, k_side)] + [table] * 2
    scales = [1.0, 1.0, 1.0, 0.1, 0.1]
    arguments = [
        (scale * torch.randn(shape, generator=generator)).to(args.device, getattr(torch, args.dtype)).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    sizes = (q_side, q_side), (k_side, k_side)
    functions = {"formula": formula, **IMPLEMENTATIONS}
    q = arguments[0]
    taken = [NAMES[utils._implementation(t, q[:0]).__name__] for t in (q.detach(), q)]
    compare(name, {label: partial(f, *arguments, *sizes) for label, f in functions.items()}, arguments, taken, args)


def swin_formula(attention: swin.WindowAttention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    b, t, c = x.shape
    q, k, v = attention.qkv(x).reshape(b, t, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    index = attention.relative_position_index
    bias = attention.relative_position_bias_table[index.flatten()].view(t, t, -1).permute(2, 0, 1)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    if mask is not None:
        logits = (logits.view(-1, *mask.shape[:1], *logits.shape[1:]) + mask).view(logits.shape)
    return attention.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


def bench_swin(name: str, across: int, heads: int, shifted: bool, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    attention = swin.WindowAttention(32 * heads, 7, heads).to(args.device, getattr(torch, args.dtype))
    x = torch.randn(across * across, 49, 32 * heads).to(args.device, getattr(torch, args.dtype))
    mask = swin._shift_mask((across, across), 7, 3, x) if shifted else None
    functions = {"formula": partial(swin_formula, attention, x, mask), "fused": partial(attention, x, mask)}
    compare(name, functions, list(attention.parameters()), ["fused", "fused"], args)


def compare(
    name: str,
    functions: dict[str, Callable[[], torch.Tensor]],
    arguments: list[torch.Tensor],
    taken: list[str],
    args: argparse.Namespace,
) -> None:
    def forward_and_backward(function: Callable) -> None:
        torch.autograd.grad(function().sum(), arguments)

    with torch.no_grad():
        expected = functions["formula"]()
        for function in functions.values():
            tolerance = 1e-4 if args.dtype == "float32" else 5e-2
            torch.testing.assert_close(function(), expected, rtol=0, atol=tolerance)
        fast = milliseconds(list(functions.values()), args)
    both = milliseconds([partial(forward_and_backward, f) for f in functions.values()], args)
    print(name)
    for label, function, one, two in zip(functions, functions.values(), fast, both, strict=True):
        kept = kept_megabytes(function)
        stars = ["*" if label == t else " " for t in taken]
        columns = f"{one:9.1f} ms x{fast[0] / one:4.2f}{stars[0]}  {two:9.1f} ms x{both[0] / two:4.2f}{stars[1]}"
        print(f"  {label:12s} {columns}  {kept:8.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, {args.device}, {args.dtype}; "
        f"PyTorch {torch.__version__}\n{'':15s}forward            with backward         kept for backward"
    )
    for name, case in CASES.items():
        bench(name, *case, args)
    for name, case in SWIN_CASES.items():
        bench_swin(name, *case, args)


if __name__ == "__main__":
    main()
