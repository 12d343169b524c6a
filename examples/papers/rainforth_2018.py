"""Signal-to-noise ratio of gradients against K on Rainforth's toy: more particles help θ and hurt φ
(Rainforth et al. 2018).

    p(z) = N(μ, I),   p(x|z) = N(z, I),   q(z|x) = N(A x + b, (2/3) I)

in 20 dimensions with 1024 data from the model, at the optimum μ = x̄, A = I/2, b = μ/2, every
parameter perturbed by N(0, 0.01²). One draw of a gradient is that of the whole data set, and the
SNR of a parameter is |E Δ| / σ(Δ); what is shown is its mean over the 20 elements of b for φ and of
μ for θ. IWAE's slope in K is −1/2 for φ and +1/2 for θ; with DReG φ's is +1/2 as well (Tucker et
al. 2019).

python examples/papers/rainforth_2018.py    about a quarter of an hour on two cores
"""

import argparse
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.objectives.named import dreg, iwae
from pyroae.plots.drawing import RUNS, plain

FALLING = (4, 8, 16, 32, 64, 128, 256)
RISING = (64, 128, 256, 512, 1024)
PUBLISHED = {"IWAE φ": -0.5, "IWAE θ": 0.5, "DReG φ": 0.5}


class Toy(nn.Module):
    """The model and guide near their optimum for the data x `[N, D]`."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        mean, identity = x.mean(0), torch.eye(x.shape[1])
        self.mu, self.a, self.b = (
            nn.Parameter(p + 0.01 * torch.randn_like(p)) for p in (mean, identity / 2, mean / 2)
        )

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x); 2/3 is the variance."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.a.T + self.b, (2 / 3) ** 0.5).to_event(1))


def measure(
    num_data: int,
    replicates: int,
    falling: Sequence[int] = FALLING,
    rising: Sequence[int] = RISING,
    seed: int = 0,
) -> dict[str, SNRCurve]:
    """The three curves.

    Where the SNR rises it is far above the noise, and a tenth of the replicates will do.

    DReG's θ-gradient is IWAE's, draw by draw: θ and φ are measured in one run of it.
    """
    torch.manual_seed(seed)
    x = torch.randn(20) + 2**0.5 * torch.randn(num_data, 20)
    toy = Toy(x)
    phi, theta = {"b": toy.b}, {"mu": toy.mu}
    both = {"φ": ("b",), "θ": ("mu",)}
    few = max(replicates // 10, 20)
    down = measure_slopes(
        toy.model,
        toy.guide,
        x,
        {"IWAE": iwae},
        ks=falling,
        parameters=phi,
        replicates=replicates,
        seed=seed,
        progress=True,
    )
    up = measure_slopes(
        toy.model,
        toy.guide,
        x,
        {"DReG": dreg},
        ks=rising,
        parameters=phi | theta,
        groups=both,
        replicates=few,
        seed=seed,
        progress=True,
    )
    return {"IWAE φ": down["IWAE"]["all"], "IWAE θ": up["DReG"]["θ"], "DReG φ": up["DReG"]["φ"]}


def draw(curves: dict[str, SNRCurve]) -> Figure:
    """SNR against K, both logarithmic, with 95 % intervals."""
    figure = Figure((5.2, 3.8), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    for colour, (name, curve) in zip(RUNS, curves.items(), strict=False):
        low, high = zip(*curve.intervals, strict=True)
        axes.fill_between(curve.ks, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(
            curve.ks, curve.snr, ".-", color=colour, label=f"{name}, slope {curve.slope.slope:+.2f}"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="K, particles", ylabel="signal-to-noise ratio of the gradient")
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, SNRCurve]:
    """Print each slope beside the published one, draw the curves, and return them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--replicates",
        type=int,
        default=400,
        help="gradients at each K, a tenth where the SNR rises; default: 400",
    )
    parser.add_argument("--num-data", type=int, default=1024, help="default: 1024")
    parser.add_argument(
        "--out", default="rainforth_2018.png", help="the picture; default: rainforth_2018.png"
    )
    options = parser.parse_args(argv)

    curves = measure(options.num_data, options.replicates)
    print("gradient   K              SNR                 published   measured   95 % interval")
    for name, curve in curves.items():
        ks, ratios = (
            f"{curve.ks[0]} to {curve.ks[-1]}",
            f"{curve.snr[0]:.3f} to {curve.snr[-1]:.3f}",
        )
        found = curve.slope
        line = f"{name:10} {ks:14} {ratios:19} {PUBLISHED[name]:+9.2f} {found.slope:+10.3f}"
        print(f"{line}   {found.low:+.3f} to {found.high:+.3f}")
    draw(curves).savefig(options.out)
    print(f"wrote {options.out}")
    return curves


if __name__ == "__main__":
    main()
