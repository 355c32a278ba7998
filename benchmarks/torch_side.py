"""The training step and the prompt generator in PyTorch; they run in their own process."""

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, pytorch
from benchmarks.problem import Problem
from torch_models import prosam, resnet, sam

NU = 5.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-6


def _set_up(problem: Problem) -> None:
    pytorch.set_up(tf32=problem.dtype != "float32")


def _device(problem: Problem) -> torch.device:
    _set_up(problem)
    return torch.device(pytorch.DEVICES[problem.device])


class Side:
    """One way to compute the problem.

    Args:
        problem: The problem.
        how: "loop" takes one sample after the other, "folded" all as one batch.
        compiled: Whether `torch.compile` is used.
        channels_last: Memory layout of the backbone's features.
    """

    def __init__(
        self,
        problem: Problem,
        how: str = "folded",
        *,
        compiled: bool = False,
        channels_last: bool = False,
    ):
        self.problem, self.how = problem, how
        self.device = _device(problem)
        self.memory = pytorch.Memory(problem.device)
        torch.manual_seed(problem.seed)
        self.sam = sam.build(problem.sam(), problem.seed)
        cast(Any, self.sam).image_encoder = torch.nn.Identity()
        self.encoder = prosam.PromptEncoder(problem.merged, queries=problem.prompts)
        self.inputs = {n: self._tensor(x, channels_last) for n, x in problem.inputs().items()}
        if "target" in self.inputs:
            self.inputs["target"] = self.inputs["target"].float()
        self.sam.to(self.device)
        self.encoder.to(self.device)
        learned = [
            x for n, x in self.encoder.named_parameters() if problem.part != "heads" or _is_head(n)
        ]
        self.optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.compute = torch.compile(self._compute) if compiled else self._compute
        self.memory.built()

    def _tensor(self, x: np.ndarray, channels_last: bool) -> torch.Tensor:
        y = torch.from_numpy(x)
        if y.ndim == 4:
            y = y.movedim(-1, 1)
            y = y if channels_last else y.contiguous()
        return y.to(self.device)

    def weights(self) -> dict[str, np.ndarray]:
        """All weights by name."""
        parts = {
            "sam": sam.build(self.problem.sam(), self.problem.seed),
            "prompt_encoder": self.encoder,
        }
        return {
            f"{part}.{name}": tensor.cpu().numpy().copy()  # training changes the tensors
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }

    def set_noise(self, eps: np.ndarray, delta: np.ndarray) -> None:
        """Uses the other side's noise (k, b, q, n)."""
        self.noise = [torch.tensor(x, device=self.device) for x in (eps, delta)]

    def _posterior(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.inputs
        if self.problem.part == "heads":
            return self.encoder.heads(x["features"])
        taps = [(x[f"{name}_merged"], x[f"{name}_prior"]) for name in ("query", "support")]
        return self.encoder(*taps, x["mask"])

    def _compute(self) -> torch.Tensor:
        """Computes the loss and leaves its gradients in the parameters."""
        mean, log_scale = self._posterior()
        if self.problem.part == "generator":
            loss = mean.square().mean() + log_scale.square().mean()
            loss.backward()
            return loss
        eps, delta = self.noise
        prompts = prosam.sample(mean, log_scale, eps, delta, NU)
        given = self.sam, self.inputs["embeddings"], prompts, self.inputs["target"]
        if self.how == "loop":
            return prosam.backward_one_by_one(*given)
        loss = prosam.objective_folded(*given)
        loss.backward()
        return loss

    def step(self) -> torch.Tensor:
        """One step of training."""
        _set_up(self.problem)  # another side may have asked for another precision
        self.optimizer.zero_grad()
        low = self.problem.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            loss = self.compute()
        self.optimizer.step()
        return loss

    def first(self) -> dict[str, Any]:
        """Takes the first step: "loss", "grads" by name, "timing"."""
        losses = []
        timing = measure.timed(lambda: losses.append(self.step().item()))
        grads = {
            f"prompt_encoder.{name}": x.grad.cpu().numpy()
            for name, x in self.encoder.named_parameters()
            if x.grad is not None
        }
        return {"loss": losses[0], "grads": grads, "timing": timing}

    def timing(self) -> measure.Timing:
        """Time of a step."""
        return measure.timed(lambda: self.step().item(), measure.CALLS[self.problem.device])

    def flops(self) -> int:
        """Matrix product and convolution operations in a step, as PyTorch counts them."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def peak(self) -> int:
        """See `pytorch.Memory`."""
        return self.memory.peak(self.step)


class Predictor:
    """The evaluation, from images to mask logits; arguments as for `Side`."""

    def __init__(self, problem: Problem, *, compiled: bool = False, channels_last: bool = False):
        self.problem = problem
        self.device = _device(problem)
        self.memory = pytorch.Memory(problem.device)
        torch.manual_seed(problem.seed)
        modules = {
            "sam": sam.build(problem.sam(), problem.seed),
            "prompt_encoder": prosam.PromptEncoder(problem.merged, queries=problem.prompts),
            "backbone": resnet.resnet50(problem.seed),
        }
        self.modules = torch.nn.ModuleDict(modules).eval().requires_grad_(False).to(self.device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            for parameter in self.modules.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.images = problem.inputs()
        self.compute = torch.compile(self._compute) if compiled else self._compute
        self.memory.built()

    def weights(self) -> dict[str, np.ndarray]:
        """All weights by name."""
        return {name: x.cpu().numpy() for name, x in self.modules.state_dict().items()}

    def _compute(
        self, query: torch.Tensor, support: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        whole: Any = self.modules["sam"]
        network: Any = self.modules["backbone"]
        query, support = (_normalized(x, self.layout) for x in (query, support))
        side = whole.image_encoder.img_size
        square = F.interpolate(query, (side, side), mode="bilinear", align_corners=True)
        embeddings = whole.image_encoder(square)
        taps = network(query)
        small = F.interpolate(mask[:, None].float(), taps[0].shape[2:])
        merged, last = network.trunk(support)
        prior = network.tail(last * small) * small
        mean, _ = self.modules["prompt_encoder"](taps, (merged, prior), small[:, 0])
        return prosam.decode(whole, embeddings, mean, mask.shape[1:])

    @torch.inference_mode()
    def logits(self) -> np.ndarray:
        """(b, h, w)."""
        _set_up(self.problem)
        given = [torch.from_numpy(x).to(self.device) for x in self.images.values()]
        low = self.problem.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            return self.compute(*given).float().cpu().numpy()

    def first(self) -> dict[str, Any]:
        """As for `Side`; the logits must agree."""
        found = []
        timing = measure.timed(lambda: found.append(self.logits()))
        size = float(np.abs(found[0]).mean())
        return {"loss": size, "grads": {"logits": found[0]}, "timing": timing}

    def timing(self) -> measure.Timing:
        """Time of a batch."""
        return measure.timed(self.logits, measure.CALLS[self.problem.device])

    def flops(self) -> int:
        """Matrix product and convolution operations in a batch."""
        with FlopCounterMode(display=False) as counter:
            self.logits()
        return counter.get_total_flops()

    def peak(self) -> int:
        """As for `Side`."""
        return self.memory.peak(self.logits)


def _normalized(images: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
    return ((images.movedim(-1, 1).float() / 255 - mean) / std).contiguous(memory_format=layout)


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in ("mean", "log_scale")
