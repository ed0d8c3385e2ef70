"""Mixed convolutions: one layer that holds every (kernel size, dilation) choice of the DASH search.

A mixed convolution computes ``y = sum_o c_o * conv(x, W_o; dilation d_o) + b`` over an operation set, where
the coefficients ``c`` are a Gumbel-softmax of trainable logits. Convolution is linear in its kernel, so the
sum equals one convolution with one aggregated kernel; five forms of the same numbers are offered, because
which is fastest depends on width, length and device (`form_choice` measures it).

Source: DASH, "Efficient Architecture Search for Diverse Tasks" (Shen, Khodak, Talwalkar 2022), as L2G uses
it. The grouping by dilation, the transforms of short blocks and the causal alignment are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2g_ray.models.block_dft import correlate_blocks
from l2g_ray.models.team import ALONE, Team

FORMS = ("by_dilation", "naive", "dense", "fft", "blocks")


@dataclass(frozen=True)
class OperationSet:
    """The (kernel size, dilation) choices of one search: ``kernel_sizes x dilations``, kernel size outermost.

    Raises ValueError when a tuple is empty, has repeats or values below 1, or when a kernel size is even (it
    has no centre, so the operations of a mixture would not line up).
    """

    kernel_sizes: tuple[int, ...]
    dilations: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("kernel_sizes", "dilations"):
            values = tuple(getattr(self, name))  # YAML gives lists; tuples keep the set hashable
            if not values or len(set(values)) != len(values) or min(values) < 1:
                raise ValueError(f"{name} must be non-empty, distinct and at least 1, got {values}")
            object.__setattr__(self, name, values)
        if even := [k for k in self.kernel_sizes if k % 2 == 0]:
            raise ValueError(f"kernel_sizes must be odd, got {even}; use for example {[k + 1 for k in even]}")

    def __len__(self) -> int:
        return len(self.kernel_sizes) * len(self.dilations)

    @property
    def operations(self) -> list[tuple[int, int]]:
        """All (kernel_size, dilation) pairs; a pair's index is ``k_index * len(dilations) + d_index``."""
        return [(k, d) for k in self.kernel_sizes for d in self.dilations]

    @property
    def fields(self) -> list[int]:
        """Receptive field ``dilation * (kernel_size - 1) + 1`` of each operation, in positions."""
        return [d * (k - 1) + 1 for k, d in self.operations]

    def discretise(self, index: int) -> tuple[int, int]:
        """(kernel_size, dilation) of an operation index; IndexError outside ``0 <= index < len(self)``."""
        if not 0 <= index < len(self):
            raise IndexError(f"operation index {index} is outside 0..{len(self) - 1}")
        return self.operations[index]

    def index(self, kernel_size: int, dilation: int) -> int:
        """Operation index of a pair, the inverse of `discretise`; ValueError for a pair outside the set."""
        return self.operations.index((kernel_size, dilation))


class SearchableConv1d(nn.Conv1d):
    """A stride-1 convolution with outputs as long as its inputs, which the architecture search may replace.

    Centred by default: ``(kernel_size // 2) * dilation`` zeros on the left and, for an even kernel, one
    dilation step fewer on the right (DeepSEA in L2G pads both sides and crops, which is the same).
    ``causal=True`` pads on the left only: output t depends on inputs up to t. Plain `nn.Conv1d` (shortcuts,
    projections) are never searched.

    Shapes: (batch, in_channels, length) -> (batch, out_channels, length).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        causal: bool = False,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        span = dilation * (kernel_size - 1)
        left = span if causal else (kernel_size // 2) * dilation
        even_sides = left == span - left
        # Equal padding is left to the convolution itself, which spares a copy of the input.
        padding = left if even_sides else 0
        super().__init__(in_channels, out_channels, kernel_size, 1, padding, dilation, groups, bias)
        self.causal = causal
        self._extra_padding = None if even_sides else (left, span - left)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in_channels, length) -> (batch, out_channels, length)."""
        return super().forward(F.pad(input, self._extra_padding) if self._extra_padding else input)


class MixedConv1d(nn.Module):
    """Weighted sum of stride-1 "same" convolutions over an `OperationSet`.

    Shapes: (batch, in_channels, length) -> (batch, out_channels, length). Parameters: ``weight`` (|D|, k_max,
    |K|, out, in / groups), taps outside an operation's own kernel being masked; ``logits`` (|O|,); ``bias``
    (out,). Taps lead, so that mixing is a batched matrix product without a copy of the weights.

    ``form``: "by_dilation" (one convolution a dilation; default), "naive" (one an operation), "dense" (one,
    with the aggregated kernel of length 2R + 1), "fft" (default for depthwise layers) or "blocks" (transforms of
    short blocks, `block_dft`); all give the same output. ``weight_std``: of normal initial weights (DASH: 0.01); None is the rule of `nn.Conv1d` with each
    operation's own fan-in. The bias starts at 0. ``generator``: a CPU generator for the initial values.

    Raises ValueError for an unknown form, a temperature that is not positive, or channels that groups do not
    divide.
    """

    team: Team = ALONE
    bias: nn.Parameter | None
    tap_mask: Tensor
    placement: Tensor
    fields: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        operation_set: OperationSet,
        *,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
        form: str | None = None,
        temperature: float = 1.0,
        weight_std: float | None = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide the channels, {in_channels} and {out_channels}")
        if form is not None and form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.operation_set, self.causal, self.temperature = operation_set, causal, temperature
        self._depthwise = groups == in_channels == out_channels and groups > 1
        self.form = form or ("fft" if self._depthwise else "by_dilation")

        kernel_sizes, dilations = operation_set.kernel_sizes, operation_set.dilations
        k_max, self._span = max(kernel_sizes), max(operation_set.fields) - 1
        # In the largest kernel a smaller one sits in the middle, or (causal) at the end, nearest to the
        # output.
        self._first_tap = [k_max - k if causal else (k_max - k) // 2 for k in kernel_sizes]
        tap_mask = torch.zeros(len(kernel_sizes), k_max)
        for row, first, k in zip(tap_mask, self._first_tap, kernel_sizes, strict=True):
            row[first : first + k] = 1
        # 0/1 tensor that puts the taps of each dilation into the dense kernel; a product with it is
        # deterministic on CUDA, an index_add is not.
        placement = torch.zeros(len(dilations), k_max, self._span + 1)
        self._offsets: tuple[int, ...] = ()
        for plane, d in zip(placement, dilations, strict=True):
            free = self._span - d * (k_max - 1)
            first = free if causal else free // 2
            plane[torch.arange(k_max), first + d * torch.arange(k_max)] = 1
            self._offsets += tuple(first + d * j for j in range(k_max))
        self.register_buffer("tap_mask", tap_mask, persistent=False)
        self.register_buffer("placement", placement, persistent=False)
        self.register_buffer("fields", torch.tensor(operation_set.fields, dtype=torch.float32), persistent=False)

        shape = (len(dilations), k_max, len(kernel_sizes), out_channels, in_channels // groups)
        self.weight = nn.Parameter(torch.empty(shape))
        self.logits = nn.Parameter(torch.empty(len(operation_set)))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters(weight_std, generator)

    @torch.no_grad()
    def reset_parameters(self, weight_std: float | None = 0.01, generator: torch.Generator | None = None) -> None:
        """Draw weights and logits again (logits 1e-3 * N(0, 1), as DASH); set the bias to 0."""
        if weight_std is None:
            self.weight.uniform_(-1, 1, generator=generator)
            fan_in = torch.tensor(self.operation_set.kernel_sizes) * (self.in_channels // self.groups)
            self.weight.mul_(fan_in.to(self.weight)[:, None, None].rsqrt())
        else:
            self.weight.normal_(0, weight_std, generator=generator)
        self.weight.mul_(self.tap_mask.t()[:, :, None, None])
        self.logits.normal_(0, 1e-3, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def candidates(self) -> tuple[str, ...]:
        """Return the forms that can be the fastest here; one convolution an operation never is.

        On CPUs transforms of blocks need channels to multiply over, and one dense kernel has too many taps but for few
        channels; whole transforms are for depthwise and narrow layers.
        """
        if self.weight.is_cuda:
            return tuple(form for form in FORMS if form != "naive" and not (form == "blocks" and self._depthwise))
        wide = self.in_channels // self.groups > 8
        return ("by_dilation", "blocks") if wide else ("by_dilation", "dense", "fft")

    def coefficients(self) -> Tensor:
        """Mixture coefficients (|O|,), non-negative, sum 1; Gumbel noise (the CPU's global RNG) only in training."""
        if self.training:
            # As F.gumbel_softmax, but drawn on the CPU, and alike on all workers of a team.
            noise = torch.empty(self.logits.shape, dtype=self.logits.dtype)
            noise = -noise.exponential_(generator=self.team.generator).log()
            scores = self.logits.log_softmax(-1) + noise.to(self.logits.device, non_blocking=True)
            return torch.softmax(scores / self.temperature, -1)
        return torch.softmax(self.logits / self.temperature, -1)

    def operation_weight(self, index: int) -> Tensor:
        """Kernel (out, in / groups, kernel_size) of one operation, a view of ``weight``."""
        k_index, d_index = divmod(index, len(self.operation_set.dilations))
        first = self._first_tap[k_index]
        last = first + self.operation_set.kernel_sizes[k_index]
        return self.weight[d_index, first:last, k_index].permute(1, 2, 0)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in_channels, length) -> (batch, out_channels, length), zeros beyond both ends."""
        # Mixing is cheap, so it keeps the parameters' precision under autocast.
        with torch.autocast(device_type=input.device.type, enabled=False):
            coefficients = self.coefficients()
            if self.form == "naive":
                kernels = [c * self.operation_weight(i) for i, c in enumerate(coefficients)]
                dilations = [d for _, d in self.operation_set.operations]
            else:
                mixed = self._mix(coefficients)
                kernels, dilations = [k.permute(1, 2, 0) for k in mixed], list(self.operation_set.dilations)
            if self.form == "blocks":
                return self._add_bias(self._correlate_by_blocks(input, mixed.flatten(0, 1)))
            if self.form in ("dense", "fft"):
                # The aggregated kernel, (out, in / groups, 2R + 1).
                kernels, dilations = [torch.einsum("dtoi,dtr->oir", mixed, self.placement)], [1]
        if self.form == "fft":
            output = self._correlate_by_fft(input, kernels[0])
        else:
            output = self._convolve(input, kernels[0], dilations[0])
            for kernel, dilation in zip(kernels[1:], dilations[1:], strict=True):
                output = output + self._convolve(input, kernel, dilation)
        return self._add_bias(output)

    def _add_bias(self, output: Tensor) -> Tensor:
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None]

    def _mix(self, coefficients: Tensor) -> Tensor:
        """Return one kernel a dilation, (|D|, k_max, out, in / groups): the kernels of one dilation are nested."""
        by_dilation = coefficients.view(-1, len(self.operation_set.dilations)).t()
        # Masking the few coefficients, not the many weights, also keeps gradients off the masked taps.
        return torch.einsum("dtk,dtkoi->dtoi", by_dilation[:, None, :] * self.tap_mask.t(), self.weight)

    def _convolve(self, input: Tensor, kernel: Tensor, dilation: int) -> Tensor:
        span = dilation * (kernel.shape[-1] - 1)
        if self.causal:
            return F.conv1d(F.pad(input, (span, 0)), kernel, dilation=dilation, groups=self.groups)
        return F.conv1d(input, kernel, padding=span // 2, dilation=dilation, groups=self.groups)

    def _correlate_by_blocks(self, input: Tensor, taps: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        before = self._span if self.causal else self._span // 2
        return correlate_blocks(input.to(dtype), taps.to(dtype), self._offsets, before, self.groups).to(input.dtype)

    def _correlate_by_fft(self, input: Tensor, kernel: Tensor) -> Tensor:
        length = input.shape[-1]
        size = _fast_size(length + self._span)  # at least L + 2R, so that nothing wraps around
        with torch.autocast(device_type=input.device.type, enabled=False):
            # bfloat16 has no FFT, float16 only for powers of two on CUDA.
            dtype = torch.promote_types(input.dtype, torch.float32)
            signal = torch.fft.rfft(input.to(dtype), size)
            # Reversed taps: a convolution layer correlates, the product of spectra convolves.
            response = torch.fft.rfft(kernel.to(dtype).flip(-1), size)
            if self._depthwise:
                product = signal * response[:, 0]
            else:
                signal, response = (
                    signal.unflatten(1, (self.groups, -1)),
                    response.unflatten(0, (self.groups, -1)),
                )
                product = torch.einsum("bgif,goif->bgof", signal, response).flatten(1, 2)
            start = 0 if self.causal else self._span // 2
            output: Tensor = torch.fft.irfft(product, size)[..., start : start + length]
            return output.to(input.dtype)

    def scale_logit_gradient_(self, scale: float, penalty: float = 1e-5) -> None:
        """Rescale the logits' gradient in place: ``g <- g / (scale * (|g|_2 + 1e-8)) + penalty * field``.

        DASH's rule: ``scale`` is G (100; 10 for DeepSEA), ``penalty`` mildly favours small receptive fields.
        Raises RuntimeError before a backward pass has reached the layer.
        """
        gradient = self.logits.grad
        if gradient is None:
            raise RuntimeError("the logits have no gradient; call backward() on a loss of this layer first")
        gradient.div_(scale * (gradient.norm() + 1e-8)).add_(self.fields.to(gradient), alpha=penalty)

    def best(self) -> tuple[int, int]:
        """(kernel_size, dilation) with the largest logit."""
        return self.operation_set.discretise(int(self.logits.argmax()))

    @torch.no_grad()
    def to_conv(self, index: int | None = None) -> SearchableConv1d:
        """Return the convolution of one operation (default: the best) with its weights and the bias copied."""
        index = int(self.logits.argmax()) if index is None else index
        pair, has_bias = self.operation_set.discretise(index), self.bias is not None
        conv = SearchableConv1d(self.in_channels, self.out_channels, *pair, self.causal, self.groups, has_bias)
        conv.to(self.weight).weight.copy_(self.operation_weight(index))
        if conv.bias is not None and self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        shape = f"{self.in_channels}, {self.out_channels}, groups={self.groups}"
        return f"{shape}, {self.operation_set}, causal={self.causal}, form={self.form}"


def _fast_size(least: int) -> int:
    """Return the least even number with no prime factor above 5 that is not below `least`: transforms of it are fast."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def replace_convolutions(
    module: nn.Module,
    operation_set: OperationSet,
    *,
    separable: bool = False,
    form: str | None = None,
    weight_std: float | None = 0.01,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, MixedConv1d]:
    """Replace each `SearchableConv1d` inside ``module``, in place; return name -> `MixedConv1d`, in order.

    The bias of each layer is kept, as in DASH; its weights are not. ``separable=True`` makes square layers
    (as many inputs as outputs) depthwise, as the official search does. Other arguments as in `MixedConv1d`.
    Raises ValueError when there is nothing to replace, or when ``module`` itself is the convolution.
    """

    def make(conv: SearchableConv1d) -> MixedConv1d:
        depthwise = separable and conv.in_channels == conv.out_channels
        mixed = MixedConv1d(
            conv.in_channels,
            conv.out_channels,
            operation_set,
            groups=conv.in_channels if depthwise else conv.groups,
            bias=conv.bias is not None,
            causal=conv.causal,
            form=form,
            temperature=temperature,
            weight_std=weight_std,
            generator=generator,
        ).to(conv.weight)
        if mixed.bias is not None and conv.bias is not None:
            mixed.bias.data.copy_(conv.bias.data)
        return mixed.train(conv.training)

    return _swap(module, SearchableConv1d, make)


def deploy_convolutions(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Replace each `MixedConv1d` inside ``module``, in place, by its winner; return name -> (size, dilation).

    Weights and biases are copied. Raises ValueError as `replace_convolutions`.
    """
    deployed = _swap(module, MixedConv1d, MixedConv1d.to_conv)
    return {name: (conv.kernel_size[0], conv.dilation[0]) for name, conv in deployed.items()}


Old = TypeVar("Old", bound=nn.Module)
New = TypeVar("New", bound=nn.Module)


def _swap(module: nn.Module, kind: type[Old], make: Callable[[Old], New]) -> dict[str, New]:
    if isinstance(module, kind):
        raise ValueError(f"module is itself a {kind.__name__}; wrap it, for example in nn.Sequential")
    swapped: dict[str, New] = {}
    made: dict[nn.Module, New] = {}  # a layer registered under two names stays shared
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(child, kind):
            continue
        if child not in made:
            swapped[name] = made[child] = make(child)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, made[child])
    if not swapped:
        raise ValueError(f"module has no {kind.__name__} inside")
    return swapped
