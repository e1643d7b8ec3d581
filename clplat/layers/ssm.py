"""Linear state-space layers whose dynamics do not depend on the data."""

import math

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State, check_state
from clplat.ops.linear_scan import linear_scan
from clplat.ops.tier import full_precision, state_dtype


class _TimeInvariant(Layer):
    """What the layers below share: full precision (there is no half complex), the skip D x."""

    skip: nn.Parameter

    def respond(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The output without the skip, and the state."""
        raise NotImplementedError

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        wide = x.to(torch.promote_types(state_dtype(x), self.skip.dtype))
        with full_precision(x):
            y, state = self.respond(wide, state)
            return (y + self.skip.to(wide) * wide).to(x), state


class LRU(_TimeInvariant):
    """Linear recurrent unit: a complex diagonal recurrence in the unit disc (Orvieto et al. 2023).

    h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t) + D x_t; |lambda| = exp(-exp(nu)) drawn
    from the ring `radii`, its angle from [0, max_phase]; gamma = sqrt(1 - |lambda|^2) at first.
    `max_phase` 0 keeps all eigenvalues positive. Parameters: 4 width state + 3 state + width, and
    a token costs as many multiplications. State: h (B, state), complex.
    """

    def __init__(
        self,
        width: int,
        state: int = 64,
        radii: tuple[float, float] = (0.4, 0.99),
        max_phase: float = 2 * math.pi,
    ):
        super().__init__(width)
        low, high = radii
        if not 0 <= low < high < 1:
            raise ValueError(f"LRU: radii={tuple(radii)}; expected 0 <= low < high < 1")
        square = torch.rand(state) * (high**2 - low**2) + low**2  # uniform over the ring's area
        self.nu = nn.Parameter((-0.5 * square.clamp(min=1e-8).log()).log())
        phase = (torch.rand(state) * max_phase).clamp(min=1e-8).log()
        self.phase = nn.Parameter(phase) if max_phase else None
        self.gamma = nn.Parameter((1 - square).sqrt().log())
        self.input = nn.Parameter(torch.randn(2, state, width) / math.sqrt(2 * width))
        self.output = nn.Parameter(torch.randn(2, width, state) / math.sqrt(state))
        self.skip = nn.Parameter(torch.randn(width))

    def respond(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        magnitude = self.nu.to(x).exp().neg().exp()
        angle = torch.zeros_like(magnitude) if self.phase is None else self.phase.to(x).exp()
        gain = self.gamma.to(x).exp()[:, None]
        real, imaginary = (x @ (gain * part.to(x)).mT for part in self.input)
        h, state = linear_scan(torch.polar(magnitude, angle), torch.complex(real, imaginary), state)
        real, imaginary = self.output.to(x)
        return h.real @ real.mT - h.imag @ imaginary.mT, state


class S4D(_TimeInvariant):
    """Diagonal state space, S4D-Lin, one for each channel (Gu et al. 2022).

    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A x_t, y_t = 2 Re(C h_t) + D x_t, A = -1/2 + i pi n
    at first, dt drawn log-uniformly from [0.001, 0.1] for each channel. Since nothing depends on
    the data, a sequence is convolved by the fast Fourier transform: T log T. Parameters: 2 width
    state + 2 width (state / 2 conjugate pairs), and a token costs as many multiplications in
    `step`. State: h (B, width, state / 2), complex.
    """

    def __init__(self, width: int, state: int = 64):
        super().__init__(width)
        if state < 2 or state % 2:
            raise ValueError(f"S4D: state={state}; expected an even number, of conjugate pairs")
        pairs = state // 2
        span = math.log(0.1) - math.log(0.001)
        self.log_dt = nn.Parameter(torch.rand(width) * span + math.log(0.001))
        self.log_decay = nn.Parameter(torch.full((width, pairs), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(pairs)).repeat(width, 1))
        self.output = nn.Parameter(torch.randn(2, width, pairs) / math.sqrt(2))
        self.skip = nn.Parameter(torch.randn(width))

    def respond(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        a = torch.complex(-self.log_decay.to(x).exp(), self.frequency.to(x))
        exponent = self.log_dt.to(x).exp()[:, None] * a  # (D, N)
        gain = torch.expm1(exponent) / a
        output = torch.complex(*self.output.to(x))

        time = x.shape[1]
        steps = torch.arange(time + 1, device=x.device)
        powers = (exponent[..., None] * steps).exp()  # (D, N, T + 1)
        kernel = 2 * torch.einsum("dn,dnt->dt", output * gain, powers[..., :-1]).real
        y = _convolve(x, kernel)
        final = torch.einsum("dn,dnt,btd->bdn", gain, powers[..., :-1].flip(-1), x.to(a))
        if state is not None:
            check_state(self, state, len(x), *a.shape)
            past = torch.einsum("dn,dnt,bdn->btd", output, powers[..., 1:], state)
            y = y + 2 * past.real
            final = final + powers[..., -1] * state
        return y, final


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution of x (B, T, D) with kernel (D, T), channel by channel."""
    length = 2 * x.shape[1]
    spectrum = torch.fft.rfft(x, length, dim=1) * torch.fft.rfft(kernel, length).mT
    return torch.fft.irfft(spectrum, length, dim=1)[:, : x.shape[1]]


class LSSL(_TimeInvariant):
    """Linear state space with a dense matrix, as it was before S4 (Gu et al. 2021): a reference.

    h_t = A' h_{t-1} + B' x_t, y_t = C h_t + D x_t for each channel; A, B are HiPPO-LegS, fixed,
    discretised by the bilinear transform with a trainable dt a channel. Sequential, and a token
    costs width state^2 multiplications; parameters: width (state + 2). State: h (B, width, state).
    """

    transition: Tensor
    control: Tensor

    def __init__(self, width: int, state: int = 16):
        super().__init__(width)
        transition, control = hippo_legs(state)
        self.register_buffer("transition", transition)
        self.register_buffer("control", control)
        span = math.log(0.1) - math.log(0.001)
        self.log_dt = nn.Parameter(torch.rand(width) * span + math.log(0.001))
        self.output = nn.Parameter(torch.randn(width, state) / math.sqrt(state))
        self.skip = nn.Parameter(torch.randn(width))

    def respond(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        transition, control = bilinear(
            self.transition.to(x), self.control.to(x), self.log_dt.to(x).exp()
        )
        h = x.new_zeros(len(x), *control.shape) if state is None else state
        check_state(self, h, len(x), *control.shape)
        outputs = []
        for x_t in x.unbind(1):
            h = torch.einsum("dnm,bdm->bdn", transition, h) + control * x_t[..., None]
            outputs.append((h * self.output.to(x)).sum(-1))
        return torch.stack(outputs, 1), h


def hippo_legs(size: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) that hold a function's past as Legendre coefficients (Gu et al. 2020)."""
    n = torch.arange(size, dtype=torch.get_default_dtype())
    root = (2 * n + 1).sqrt()
    return -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1), root


def bilinear(transition: Tensor, control: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Discrete (D, N, N) and (D, N) of the continuous A and B, for each step size in dt (D,)."""
    one = torch.eye(len(transition), device=dt.device, dtype=dt.dtype)
    half = dt[:, None, None] / 2 * transition
    implicit = one - half
    right = (dt[:, None] * control)[..., None]
    return torch.linalg.solve(implicit, one + half), torch.linalg.solve(implicit, right)[..., 0]
