"""Golden files of optimizers, learning rate schedules, the loss and gradient clipping, all by torch."""

import math
import warnings

import numpy as np
import torch

from golden_file import TRAIN, hex32, hex64, write

STEPS = 10
OPTIMIZERS = [
    ("sgd", torch.optim.SGD, {"lr": 0.1}),
    ("sgd_momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    ("sgd_momentum_dampening", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    ("sgd_nesterov", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("sgd_weight_decay", torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    ("sgd_momentum_weight_decay", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005}),
    (
        "sgd_nesterov_weight_decay",
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005},
    ),
    ("adam", torch.optim.Adam, {"lr": 0.001}),
    ("adam_weight_decay", torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    ("adam_betas_eps", torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
    ("adamw", torch.optim.AdamW, {"lr": 0.001, "weight_decay": 0.01}),
    ("adamw_strong", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ("adam_amsgrad", torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True}),
    ("adamw_amsgrad", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
]


def vectors():
    """Start and gradients; among them zero gradients, tiny ones and ones that change sign."""
    rng = np.random.default_rng(11)
    start = np.asarray([1, -0.5, 0.25, 0, 3.75, -2, 1e-3, 0.1], dtype=np.float32)
    gradients = rng.normal(size=(STEPS, 8)).astype(np.float32)
    gradients[:, 3] = 0
    gradients[:, 4] *= np.float32(1e-6)
    gradients[:, 5] *= np.float32(100)
    gradients[4:, 6] = 0
    return start, gradients


def trajectory(kind, options, start, gradients, dtype):
    p = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = kind([p], **options)
    for gradient in gradients:
        p.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
        yield p.detach().numpy().copy()


def optimizers():
    start, gradients = vectors()
    rows = [["start", "", 0, "", hex32(start), hex64(start)]]
    for name, kind, options in OPTIMIZERS:
        text = " ".join(f"{k}={v}" for k, v in options.items()).replace("(", "").replace(", ", ";")
        text = text.replace(")", "")
        narrow = trajectory(kind, options, start, gradients, torch.float32)
        wide = trajectory(kind, options, start, gradients, torch.float64)
        far = 0.0
        for step, (p, q) in enumerate(zip(narrow, wide), 1):
            rows.append([name, text, step, hex32(gradients[step - 1]), hex32(p), hex64(q)])
            far = max(far, float(np.max(np.abs(p - q))))
        print(f"{name}: f32 and f64 differ by at most {far:.3g}")
    write(
        TRAIN / "optimizers.csv",
        ["torch", "numpy"],
        "Eight parameters over ten steps. The first row is the common start; `gradient` is that of the step and the\n"
        "parameters are those after it: f32 as torch computes in f32 (it may fuse operations), f64 as torch\n"
        "computes the same steps in f64 from the same f32 start and gradients. Options are torch's; defaults where\n"
        "not named (betas 0.9 and 0.999, eps 1e-8; the weight decay of adam is added to the gradient).",
        ["optimizer", "options", "step", "gradient", "parameters_f32", "parameters_f64"],
        rows,
    )


def linear_with_warmup(warmup, total):
    """The factor of transformers' get_linear_schedule_with_warmup, written anew from its definition."""

    def factor(step):
        if step < warmup:
            return step / max(1, warmup)
        return max(0.0, (total - step) / max(1, total - warmup))

    return factor


def schedules():
    scheduler = torch.optim.lr_scheduler
    cases = [
        ("multi_step", "lr=0.1 milestones=3;6;7 gamma=0.1", 0.1, 10,
         lambda o: scheduler.MultiStepLR(o, [3, 6, 7], gamma=0.1)),
        ("multi_step", "lr=0.05 milestones=2;2;5 gamma=0.5", 0.05, 8,
         lambda o: scheduler.MultiStepLR(o, [2, 2, 5], gamma=0.5)),
        ("cosine", "lr=0.1 t_max=10 eta_min=0", 0.1, 11,
         lambda o: scheduler.CosineAnnealingLR(o, 10)),
        ("cosine", "lr=0.02 t_max=7 eta_min=0.001", 0.02, 8,
         lambda o: scheduler.CosineAnnealingLR(o, 7, eta_min=0.001)),
        ("linear_warmup", "lr=0.001 warmup=4 total=12", 0.001, 14,
         lambda o: scheduler.LambdaLR(o, linear_with_warmup(4, 12))),
        ("linear_warmup", "lr=0.001 warmup=0 total=5", 0.001, 7,
         lambda o: scheduler.LambdaLR(o, linear_with_warmup(0, 5))),
        ("linear_warmup", "lr=0.001 warmup=3 total=3", 0.001, 5,
         lambda o: scheduler.LambdaLR(o, linear_with_warmup(3, 3))),
    ]  # fmt: skip
    rows = []
    worst = 0.0
    for name, text, lr, steps, make in cases:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        schedule = make(optimizer)
        for step in range(steps):
            rate = optimizer.param_groups[0]["lr"]
            if name == "cosine":
                options = dict(part.split("=") for part in text.split())
                low, length = float(options["eta_min"]), int(options["t_max"])
                closed = low + (lr - low) * (1 + math.cos(math.pi * step / length)) / 2
                worst = max(worst, abs(closed - rate))
            rows.append([name, text, step, hex64([rate]), repr(float(rate))])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
                schedule.step()
    print(f"cosine: torch's recurrence and the closed form differ by at most {worst:.3g}")
    write(
        TRAIN / "schedules.csv",
        ["torch"],
        "The learning rate in use at each step, counted from 0, as f64 bits and in decimal.\n"
        "cosine: torch steps by a recurrence; the closed form eta_min + (lr - eta_min) (1 + cos(pi t / t_max)) / 2 is\n"
        f"within {worst:.2g} of it. linear_warmup: torch's LambdaLR with the factor of transformers'\n"
        "get_linear_schedule_with_warmup: step / max(1, warmup) below warmup, then max(0, (total - step) /\n"
        "max(1, total - warmup)).",
        ["schedule", "options", "step", "lr_f64", "lr"],
        rows,
    )


def losses():
    rng = np.random.default_rng(12)
    cases = [
        ("scattered", (rng.normal(size=(4, 5)) * 2).astype(np.float32), [0, 4, 2, 2]),
        ("equal", np.zeros((2, 3), dtype=np.float32), [1, 2]),
        ("large", np.asarray([[100, -100, 0, 30], [-80, 88, 87.5, 0]], dtype=np.float32), [1, 1]),
        ("one_class", np.asarray([[0.7], [-3]], dtype=np.float32), [0, 0]),
        ("one_row", (rng.normal(size=(1, 10)) * 3).astype(np.float32), [7]),
    ]
    rows = []
    for name, logits, targets in cases:
        for smoothing in [0.0, 0.1]:
            results = []
            for dtype in [torch.float32, torch.float64]:
                x = torch.tensor(logits, dtype=dtype, requires_grad=True)
                loss = torch.nn.functional.cross_entropy(x, torch.tensor(targets), label_smoothing=smoothing)
                loss.backward()
                results.append((loss.detach().numpy(), x.grad.numpy()))
            (loss, gradient), (loss_wide, gradient_wide) = results
            target_text = " ".join(map(str, targets))
            head = [name, smoothing, f"{logits.shape[0]}x{logits.shape[1]}", hex32(logits), target_text]
            tail = [hex32(loss), hex32(gradient), hex64(loss_wide), hex64(gradient_wide)]
            rows.append(head + tail)
    write(
        TRAIN / "losses.csv",
        ["torch", "numpy"],
        "torch.nn.functional.cross_entropy, mean over the rows, and its gradient with respect to the logits: in f32\n"
        "and, from the same f32 logits, in f64. label_smoothing e puts 1 - e + e/C on the target and e/C elsewhere.",
        ["case", "label_smoothing", "shape", "logits", "targets"]
        + ["loss_f32", "gradient_f32", "loss_f64", "gradient_f64"],
        rows,
    )


def clip():
    rng = np.random.default_rng(13)
    a, b = rng.normal(size=6).astype(np.float32), (rng.normal(size=5) * 3).astype(np.float32)
    cases = [
        ("above", [a, b], 1.0),
        ("below", [a, b], 100.0),
        ("one_tensor", [b], 0.25),
        ("zero", [np.zeros(4, dtype=np.float32), np.zeros(2, dtype=np.float32)], 1.0),
        ("exact", [np.asarray([3, 0], dtype=np.float32), np.asarray([0, 4], dtype=np.float32)], 5.0),
        ("large", [a * np.float32(1e10), b], 10.0),
    ]
    rows = []
    for name, gradients, limit in cases:
        results = []
        for dtype in [torch.float32, torch.float64]:
            parameters = [torch.nn.Parameter(torch.zeros(len(g), dtype=dtype)) for g in gradients]
            for p, g in zip(parameters, gradients):
                p.grad = torch.tensor(g, dtype=dtype)
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            results.append((norm.item(), [p.grad.numpy() for p in parameters]))
        (norm, clipped), (norm_wide, clipped_wide) = results
        lists = [";".join(map(hex32, gradients)), hex32([norm]), ";".join(map(hex32, clipped))]
        lists += [hex64([norm_wide]), ";".join(map(hex64, clipped_wide))]
        rows.append([name, limit, *lists])
    write(
        TRAIN / "clip.csv",
        ["torch", "numpy"],
        "torch.nn.utils.clip_grad_norm_, 2-norm over all tensors together: gradients times min(1, max_norm /\n"
        "(norm + 1e-6)). Tensors separated by semicolons; in f32 and, from the same f32 gradients, in f64.",
        ["case", "max_norm", "gradients", "norm_f32", "clipped_f32", "norm_f64", "clipped_f64"],
        rows,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    optimizers()
    schedules()
    losses()
    clip()
